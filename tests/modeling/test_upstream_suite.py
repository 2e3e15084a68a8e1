"""transformers' own tests of models, configurations and backbones, run on VoxelFM.

Opt-in: the tests are fetched, not kept here (`python tests/modeling/fetch_upstream_suite.py OUT`), and run where the
variable VOXELFM_UPSTREAM_TESTS names that folder.
"""

import os
import sys
import unittest

import pytest
import torch
from torch import nn
from transformers.modeling_outputs import MaskedImageModelingOutput
from transformers.processing_utils import Unpack
from transformers.testing_utils import torch_device
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple

from voxelfm_hf.modeling.configuration_voxelfm import VoxelFMConfig
from voxelfm_hf.modeling.modeling_voxelfm import VoxelFMBackbone, VoxelFMModel, VoxelFMPreTrainedModel
from voxelfm_hf.modeling.modeling_voxelfm_classifier import VoxelFMForImageClassification

FOLDER = os.environ.get("VOXELFM_UPSTREAM_TESTS")
if not FOLDER:
    pytest.skip(
        "set VOXELFM_UPSTREAM_TESTS to the folder written by fetch_upstream_suite.py to run transformers' own tests",
        allow_module_level=True,
    )
sys.path.insert(0, FOLDER)

from transformers_suite.test_backbone_common import BackboneTesterMixin  # noqa: E402  (needs the path)
from transformers_suite.test_configuration_common import ConfigTester  # noqa: E402
from transformers_suite.test_modeling_common import ModelTesterMixin  # noqa: E402


class VoxelFMModelTester:
    """The tiny model and inputs the shared tests ask for."""

    def __init__(self, parent):
        self.parent = parent
        self.is_training = False
        self.batch_size = 3
        self.image_size = 12
        self.patch_size = 4
        self.hidden_size = 48
        self.num_hidden_layers = 2
        self.num_attention_heads = 2
        self.num_register_tokens = 2
        self.mask_length = (self.image_size // self.patch_size) ** 3
        self.num_masks = self.mask_length // 2
        self.seq_length = 1 + self.num_register_tokens + self.mask_length

    def get_config(self) -> VoxelFMConfig:
        return VoxelFMConfig(
            hidden_size=self.hidden_size,
            num_hidden_layers=self.num_hidden_layers,
            num_attention_heads=self.num_attention_heads,
            patch_size=self.patch_size,
            num_register_tokens=self.num_register_tokens,
            image_size=self.image_size,
        )

    def prepare_config_and_inputs_for_common(self):
        sides = (self.image_size,) * 3
        pixel_values = torch.randn(self.batch_size, 1, *sides, device=torch_device)
        return self.get_config(), {"pixel_values": pixel_values}


class VoxelFMModelTest(ModelTesterMixin, unittest.TestCase):
    all_model_classes = (VoxelFMModel, VoxelFMBackbone)
    test_resize_embeddings = False  # of tokens of a vocabulary
    test_can_init_all_missing_weights_before_2023 = True  # the test guesses a model's year from a licence banner

    def setUp(self):
        self.model_tester = VoxelFMModelTester(self)
        self.config_tester = ConfigTester(self, config_class=VoxelFMConfig, has_text_modality=False, hidden_size=72)

    def test_config(self):
        self.config_tester.run_common_tests()

    def test_model_get_set_embeddings(self):
        # As in the shared test, which expects the embeddings of a vocabulary.
        for model_class in self.all_model_classes:
            model = model_class(self.model_tester.get_config())
            self.assertIsInstance(model.get_input_embeddings(), nn.Conv3d)
            replacement = nn.Conv3d(1, 48, 4, stride=4)
            model.set_input_embeddings(replacement)
            self.assertIs(model.get_input_embeddings(), replacement)
            self.assertIsNone(model.get_output_embeddings())

    @unittest.skip("volumes have no embeddings that could be passed in their place")
    def test_inputs_embeds(self):
        pass


class VoxelFMWithLoss(VoxelFMPreTrainedModel):
    """The smallest head with a loss, for the shared tests of training."""

    def __init__(self, config: VoxelFMConfig):
        super().__init__(config)
        self.voxelfm = VoxelFMModel(config)
        self.decoder = nn.Linear(config.hidden_size, config.patch_size**3)
        self.post_init()

    @can_return_tuple
    def forward(
        self, pixel_values, bool_masked_pos=None, **kwargs: Unpack[TransformersKwargs]
    ) -> MaskedImageModelingOutput:
        outputs = self.voxelfm(pixel_values, bool_masked_pos=bool_masked_pos, **kwargs)
        reconstruction = self.decoder(outputs.last_hidden_state)
        return MaskedImageModelingOutput(
            loss=reconstruction.square().mean(),
            reconstruction=reconstruction,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


class VoxelFMWithLossTest(VoxelFMModelTest):
    all_model_classes = (VoxelFMWithLoss,)

    def setUp(self):
        super().setUp()
        self.model_tester.is_training = True

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels=return_labels)
        if return_labels:
            # Every second patch: without any mask the mask token would have no gradient.
            masked = torch.arange(self.model_tester.mask_length, device=torch_device) % 2 == 0
            inputs["bool_masked_pos"] = masked.expand(self.model_tester.batch_size, -1)
        return inputs


class VoxelFMForImageClassificationTest(VoxelFMModelTest):
    all_model_classes = (VoxelFMForImageClassification,)

    def setUp(self):
        super().setUp()
        self.model_tester.is_training = True

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels=return_labels)
        if return_labels:
            inputs["labels"] = torch.zeros(self.model_tester.batch_size, dtype=torch.long, device=torch_device)
        return inputs


class VoxelFMBackboneTest(BackboneTesterMixin, unittest.TestCase):
    all_model_classes = (VoxelFMBackbone,)
    config_class = VoxelFMConfig

    def setUp(self):
        self.model_tester = VoxelFMModelTester(self)
