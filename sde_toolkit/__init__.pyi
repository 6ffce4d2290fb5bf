# The public names and the rooms they come from.  `sde_toolkit/__init__.py` loads them from here on first use;
# editors and type checkers read them from here too.
from . import cli as cli
from . import config as config
from . import data as data
from . import guidance as guidance
from . import interop as interop
from . import lab as lab
from . import likelihood as likelihood
from . import metrics as metrics
from . import models as models
from . import networks as networks
from . import runs as runs
from . import samplers as samplers
from . import sdes as sdes
from . import training as training
from . import utils as utils
from .data import Dataset as Dataset
from .data import ImageOptions as ImageOptions
from .data import Scaling as Scaling
from .data import digits as digits
from .data import estimate_moments as estimate_moments
from .data import from_array as from_array
from .data import open_data as open_data
from .guidance import ClassifierFreeGuidance as ClassifierFreeGuidance
from .guidance import DynamicThreshold as DynamicThreshold
from .guidance import StaticThreshold as StaticThreshold
from .guidance import guided as guided
from .guidance import thresholded as thresholded
from .likelihood import Bound as Bound
from .likelihood import BoundDraws as BoundDraws
from .likelihood import Budget as Budget
from .likelihood import Classification as Classification
from .likelihood import Endpoint as Endpoint
from .likelihood import ExactDivergence as ExactDivergence
from .likelihood import FlowSolver as FlowSolver
from .likelihood import Hutchinson as Hutchinson
from .likelihood import HutchPlusPlus as HutchPlusPlus
from .likelihood import Latents as Latents
from .likelihood import LogLikelihood as LogLikelihood
from .likelihood import TruncatedNormalDequantizer as TruncatedNormalDequantizer
from .likelihood import UniformDequantizer as UniformDequantizer
from .likelihood import VariationalDequantizer as VariationalDequantizer
from .likelihood import continuous_bound as continuous_bound
from .likelihood import decode as decode
from .likelihood import differentiable_log_likelihood as differentiable_log_likelihood
from .likelihood import discrete_bound as discrete_bound
from .likelihood import discrete_log_likelihood as discrete_log_likelihood
from .likelihood import encode as encode
from .likelihood import fit_temperature as fit_temperature
from .likelihood import interpolate as interpolate
from .likelihood import interpolate_data as interpolate_data
from .likelihood import likelihood_cost as likelihood_cost
from .likelihood import log_likelihood as log_likelihood
from .likelihood import train_dequantizer as train_dequantizer
from .metrics import Estimate as Estimate
from .metrics import energy_distance as energy_distance
from .metrics import frechet_distance as frechet_distance
from .metrics import mmd as mmd
from .metrics import sliced_wasserstein as sliced_wasserstein
from .models import ExactModel as ExactModel
from .models import Gaussian as Gaussian
from .models import GaussianMixture as GaussianMixture
from .models import IndexedModel as IndexedModel
from .models import LowRank as LowRank
from .models import Moments as Moments
from .models import NetworkModel as NetworkModel
from .models import ScoreModel as ScoreModel
from .networks import MLP as MLP
from .networks import DiT as DiT
from .networks import NCSNpp as NCSNpp
from .networks import UNet as UNet
from .networks import UNet1D as UNet1D
from .runs import Run as Run
from .runs import open_run as open_run
from .runs import open_shipped as open_shipped
from .samplers import AnnealedLangevin as AnnealedLangevin
from .samplers import Langevin as Langevin
from .samplers import Restart as Restart
from .samplers import Sampler as Sampler
from .samplers import Samples as Samples
from .samplers import StepInfo as StepInfo
from .samplers import adaptive as adaptive
from .samplers import adaptive_sde as adaptive_sde
from .samplers import ancestral as ancestral
from .samplers import bosh3 as bosh3
from .samplers import calibrate as calibrate
from .samplers import ddim as ddim
from .samplers import ddpm as ddpm
from .samplers import default as default
from .samplers import deis as deis
from .samplers import deis_rho_rk as deis_rho_rk
from .samplers import dopri5 as dopri5
from .samplers import dpm_solver as dpm_solver
from .samplers import dpm_solver_pp as dpm_solver_pp
from .samplers import dpm_solver_pp_2s as dpm_solver_pp_2s
from .samplers import edm as edm
from .samplers import er_sde as er_sde
from .samplers import eta_family as eta_family
from .samplers import euler as euler
from .samplers import euler_maruyama as euler_maruyama
from .samplers import exponential_adams as exponential_adams
from .samplers import exponential_integrator as exponential_integrator
from .samplers import heun as heun
from .samplers import ipndm as ipndm
from .samplers import lms as lms
from .samplers import multistep_dpm_solver as multistep_dpm_solver
from .samplers import pndm as pndm
from .samplers import predictor_corrector as predictor_corrector
from .samplers import restarting as restarting
from .samplers import reverse_diffusion as reverse_diffusion
from .samplers import sa_solver as sa_solver
from .samplers import sampled_moments as sampled_moments
from .samplers import sde_dpm_solver as sde_dpm_solver
from .samplers import sde_dpm_solver_pp as sde_dpm_solver_pp
from .samplers import sra as sra
from .samplers import stochastic_heun as stochastic_heun
from .samplers import torchsde_sampler as torchsde_sampler
from .samplers import unip as unip
from .samplers import unipc as unipc
from .samplers import without_last_draw as without_last_draw
from .sdes import VESDE as VESDE
from .sdes import VPSDE as VPSDE
from .sdes import Chain as Chain
from .sdes import ChainSDE as ChainSDE
from .sdes import CosineBeta as CosineBeta
from .sdes import CustomSDE as CustomSDE
from .sdes import ForwardSDE as ForwardSDE
from .sdes import LinearBeta as LinearBeta
from .sdes import RectifiedFlow as RectifiedFlow
from .sdes import SubVPSDE as SubVPSDE
from .training import ChainLoss as ChainLoss
from .training import DenoisingLoss as DenoisingLoss
from .training import Optimization as Optimization
from .training import TrainState as TrainState
from .training import fit as fit
from .training import load_model as load_model
from .training import save_model as save_model

__version__: str

__all__ = [
    "MLP",
    "VESDE",
    "VPSDE",
    "AnnealedLangevin",
    "Bound",
    "BoundDraws",
    "Budget",
    "Chain",
    "ChainLoss",
    "ChainSDE",
    "Classification",
    "ClassifierFreeGuidance",
    "CosineBeta",
    "CustomSDE",
    "Dataset",
    "DenoisingLoss",
    "DiT",
    "DynamicThreshold",
    "Endpoint",
    "Estimate",
    "ExactDivergence",
    "ExactModel",
    "FlowSolver",
    "ForwardSDE",
    "Gaussian",
    "GaussianMixture",
    "HutchPlusPlus",
    "Hutchinson",
    "ImageOptions",
    "IndexedModel",
    "Langevin",
    "Latents",
    "LinearBeta",
    "LogLikelihood",
    "LowRank",
    "Moments",
    "NCSNpp",
    "NetworkModel",
    "Optimization",
    "RectifiedFlow",
    "Restart",
    "Run",
    "Sampler",
    "Samples",
    "Scaling",
    "ScoreModel",
    "StaticThreshold",
    "StepInfo",
    "SubVPSDE",
    "TrainState",
    "TruncatedNormalDequantizer",
    "UNet",
    "UNet1D",
    "UniformDequantizer",
    "VariationalDequantizer",
    "adaptive",
    "adaptive_sde",
    "ancestral",
    "bosh3",
    "calibrate",
    "continuous_bound",
    "ddim",
    "ddpm",
    "decode",
    "default",
    "deis",
    "deis_rho_rk",
    "differentiable_log_likelihood",
    "digits",
    "discrete_bound",
    "discrete_log_likelihood",
    "dopri5",
    "dpm_solver",
    "dpm_solver_pp",
    "dpm_solver_pp_2s",
    "edm",
    "encode",
    "energy_distance",
    "er_sde",
    "estimate_moments",
    "eta_family",
    "euler",
    "euler_maruyama",
    "exponential_adams",
    "exponential_integrator",
    "fit",
    "fit_temperature",
    "frechet_distance",
    "from_array",
    "guided",
    "heun",
    "interpolate",
    "interpolate_data",
    "ipndm",
    "likelihood_cost",
    "lms",
    "load_model",
    "log_likelihood",
    "mmd",
    "multistep_dpm_solver",
    "open_data",
    "open_run",
    "open_shipped",
    "pndm",
    "predictor_corrector",
    "restarting",
    "reverse_diffusion",
    "sa_solver",
    "sampled_moments",
    "save_model",
    "sde_dpm_solver",
    "sde_dpm_solver_pp",
    "sliced_wasserstein",
    "sra",
    "stochastic_heun",
    "thresholded",
    "torchsde_sampler",
    "train_dequantizer",
    "unip",
    "unipc",
    "without_last_draw",
]
