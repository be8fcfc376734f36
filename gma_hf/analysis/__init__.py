"""What the components of a GMA model learned: `pip install gma-hf[analysis]`."""

from .analyze import analyze
from .callback import RoutingCallback
from .tables import Analysis, alignment, bhattacharyya_distances
from .theory import affinity_properties, observed_sensitivity, responsibility_gradients, routing_sensitivity


__all__ = [
    "Analysis",
    "RoutingCallback",
    "affinity_properties",
    "alignment",
    "analyze",
    "bhattacharyya_distances",
    "observed_sensitivity",
    "responsibility_gradients",
    "routing_sensitivity",
]
