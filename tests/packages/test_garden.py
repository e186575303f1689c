"""The TensorFlow Model Garden: blocks and backbones whose configs hold regularizers, and quantization-aware models."""

import warnings

import pytest
import tensorflow as tf
import tensorflow_model_optimization as tfmot
import tf_keras
from common import by_path, check_everything
from official.nlp.modeling.layers import TransformerEncoderBlock
from official.projects.qat.vision.quantization import schemes
from official.vision.modeling.backbones.mobilenet import MobileNet
from official.vision.modeling.backbones.resnet import ResNet

import tfk_regularizers as tfk

IMAGES = tf.random.stateless_normal((2, 32, 32, 3), [1, 2])
SPECS = tf_keras.layers.InputSpec(shape=[None, 32, 32, 3])


def classifier(backbone):
    """A model around a backbone of the Garden, which returns a dict."""
    inputs = tf_keras.Input((32, 32, 3))
    features = backbone(inputs)
    pooled = tf_keras.layers.GlobalAveragePooling2D()(features[max(features)])
    model = tf_keras.Model(inputs, tf_keras.layers.Dense(2, name="head")(pooled))
    model.compile(tf_keras.optimizers.SGD(0.0), "mse")
    return model


@pytest.mark.parametrize("old", [tfk.L2(0.01), None], ids=str)
def test_resnet(old, tmp_path):
    model = classifier(ResNet(18, SPECS, kernel_regularizer=old))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        paths = tfk.set_regularizers(model, kernel_regularizer=tfk.L2(1.0))
    assert len(paths) == 22
    assert any("may contain the old `kernel_regularizer` of 'res_net" in str(each.message) for each in caught) == (
        old is None
    )
    model.save(tmp_path / "model.keras")
    loaded = tf_keras.models.load_model(tmp_path / "model.keras")
    assert sum(by_path(loaded).values()) == pytest.approx(sum(by_path(model).values()))
    check_everything(model, IMAGES, tf.zeros([2, 2]), 22)


@pytest.mark.parametrize("old", [tfk.L2(0.01), None], ids=str)
def test_encoder_block_that_ignores_its_argument(old, tmp_path):
    inputs = tf_keras.Input((5, 8))
    block = TransformerEncoderBlock(2, 16, "relu", kernel_regularizer=old, name="block")
    model = tf_keras.Model(inputs, tf_keras.layers.Dense(1, name="head")(block(inputs)))
    model.compile(tf_keras.optimizers.SGD(0.0), "mse")
    assert by_path(model) == {}
    with pytest.warns(UserWarning, match="may contain the old `kernel_regularizer` of 'block'"):
        tfk.set_regularizers(model, kernel_regularizer=tfk.L2(1.0))
    model.save(tmp_path / "model.keras")
    loaded = tf_keras.models.load_model(tmp_path / "model.keras")
    assert list(by_path(loaded)) == ["head/kernel"]  # as the warning says
    check_everything(model, tf.ones([2, 5, 8]), tf.zeros([2, 5, 1]), 7)


@pytest.mark.parametrize("regularizer", ["l2", None])
def test_quantization_aware_mobilenet(regularizer):
    backbone = MobileNet("MobileNetV2", 0.25, SPECS, kernel_regularizer=tf_keras.regularizers.get(regularizer))
    with tfmot.quantization.keras.quantize_scope({"L2": tfk.L2}):
        annotated = tfmot.quantization.keras.quantize_annotate_model(backbone)
        quantized = tfmot.quantization.keras.quantize_apply(annotated, scheme=schemes.Default8BitQuantizeScheme())
    assert len(by_path(quantized)) == (0 if regularizer is None else 35)
    model = classifier(quantized)
    check_everything(model, IMAGES, tf.zeros([2, 2]), 36)  # including the head's
    check_everything(model, IMAGES, tf.zeros([2, 2]), 17, keyword="depthwise_regularizer")
