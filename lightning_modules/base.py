"""What all modules share."""

from __future__ import annotations

from lightning.pytorch import LightningModule


class RewardsModule(LightningModule):
    """Base of the library's modules: gives ``rationalrewards --help`` a short list of what can be run.

    Modules are given recipes (light, typed objects); networks come to life in ``configure_model``. They do no I/O of their own:
    data modules read, callbacks write.
    """
