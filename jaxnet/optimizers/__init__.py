"""Optimizers (section 4.4): pairs of pure functions ``(init, update)`` in optax's protocol."""

from jaxnet.optimizers.adabelief import AdaBeliefState, adabelief
from jaxnet.optimizers.adagrad import AdagradState, adagrad
from jaxnet.optimizers.adam import AdamState, adam
from jaxnet.optimizers.adamw import adamw
from jaxnet.optimizers.adan import AdanState, adan
from jaxnet.optimizers.angulargrad import AngularGradState, angulargrad
from jaxnet.optimizers.averaged import averaged
from jaxnet.optimizers.base import EmptyState, Optimizer, ScalarOrSchedule, Schedule, apply_updates, conjugate
from jaxnet.optimizers.chain import chain
from jaxnet.optimizers.clip import clip_by_global_norm, clip_by_value
from jaxnet.optimizers.decay import AddDecayedWeightsState, add_decayed_weights
from jaxnet.optimizers.ema import EmaState, ema
from jaxnet.optimizers.flat import Raveled, flat, ravel
from jaxnet.optimizers.lion import LionState, lion
from jaxnet.optimizers.lookahead import LookaheadState, lookahead
from jaxnet.optimizers.master_copy import MasterCopyState, master_copy
from jaxnet.optimizers.muon import MuonState, muon
from jaxnet.optimizers.partition import partition
from jaxnet.optimizers.plateau import ReduceOnPlateauState, observe, reduce_on_plateau
from jaxnet.optimizers.rmsprop import RmspropState, rmsprop
from jaxnet.optimizers.schedule_free import (
    ScheduleFreeState,
    schedule_free,
    schedule_free_adamw,
    schedule_free_sgd,
)
from jaxnet.optimizers.schedules import (
    constant_schedule,
    exponential_decay,
    piecewise_constant_schedule,
    warmup_cosine_decay_schedule,
)
from jaxnet.optimizers.sgd import SgdState, sgd
from jaxnet.optimizers.skip_nonfinite import SkipNonfiniteState, skip_nonfinite
from jaxnet.optimizers.swa import SwaState, swa

__all__ = [
    "AdaBeliefState",
    "AdagradState",
    "AdamState",
    "AdanState",
    "AddDecayedWeightsState",
    "AngularGradState",
    "EmaState",
    "EmptyState",
    "LionState",
    "LookaheadState",
    "MasterCopyState",
    "MuonState",
    "Optimizer",
    "Raveled",
    "ReduceOnPlateauState",
    "RmspropState",
    "ScalarOrSchedule",
    "Schedule",
    "ScheduleFreeState",
    "SgdState",
    "SkipNonfiniteState",
    "SwaState",
    "adabelief",
    "adagrad",
    "adam",
    "adamw",
    "adan",
    "add_decayed_weights",
    "angulargrad",
    "apply_updates",
    "averaged",
    "chain",
    "clip_by_global_norm",
    "clip_by_value",
    "conjugate",
    "constant_schedule",
    "ema",
    "exponential_decay",
    "flat",
    "lion",
    "lookahead",
    "master_copy",
    "muon",
    "observe",
    "partition",
    "piecewise_constant_schedule",
    "ravel",
    "reduce_on_plateau",
    "rmsprop",
    "schedule_free",
    "schedule_free_adamw",
    "schedule_free_sgd",
    "sgd",
    "skip_nonfinite",
    "swa",
    "warmup_cosine_decay_schedule",
]
