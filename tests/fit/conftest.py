"""A LLaDA of 20 k parameters on one short task."""

import copy

import pytest

RECIPE = {
    "method": "masked",
    "model": {
        "model_type": "llada",
        "d_model": 32,
        "n_heads": 2,
        "n_layers": 1,
        "mlp_hidden_size": 64,
        "vocab_size": 104,
        "max_sequence_length": 64,
    },
    "data": {
        "tasks": {"sort:length=4": 1.0, "permutation:size=6": 2.0},
        "gen_lengths": {6: 0.5, 8: 0.5},
        "batch_size": 16,
        "groups": 2,
    },
    "fit": {
        "steps": 6,
        "learning_rate": 0.01,
        "warmup": 2,
        "ema": 0.9,
        "checkpoint_every": 3,
        "log_every": 2,
    },
}


@pytest.fixture
def recipe():
    """A function that makes the raw recipe with dotted entries changed."""

    def make(**changes):
        raw = copy.deepcopy(RECIPE)
        for name, value in changes.items():
            section, _, key = name.partition("__")
            raw[section][key] = value
        return raw

    return make


@pytest.fixture
def training(recipe):
    """A function that makes a fresh training object, as a new process would."""
    from whet.dlm.masked import MaskedTraining
    from whet.zoo.training import TaskRecipe

    def make(**changes):
        return MaskedTraining(TaskRecipe.model_validate(recipe(**changes)))

    return make
