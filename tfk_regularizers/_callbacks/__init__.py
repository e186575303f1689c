"""What acts during training: a room for each callback."""

from tfk_regularizers._callbacks.penalty_logger import PenaltyLogger as PenaltyLogger
from tfk_regularizers._callbacks.regularization_scheduler import RegularizationScheduler as RegularizationScheduler
