"""What the components of a GMA model learned: `pip install gma-hf[analysis]`."""

from .analyze import analyze
from .callback import RoutingCallback
from .tables import Analysis, alignment, bhattacharyya_distances
from .theory import (
    Mixture,
    affinity_properties,
    gradient_error,
    mean_gradients,
    observed_sensitivity,
    responsibility_gradients,
    routing_sensitivity,
)


__all__ = [
    "Analysis",
    "Mixture",
    "RoutingCallback",
    "affinity_properties",
    "alignment",
    "analyze",
    "bhattacharyya_distances",
    "gradient_error",
    "mean_gradients",
    "observed_sensitivity",
    "responsibility_gradients",
    "routing_sensitivity",
]
