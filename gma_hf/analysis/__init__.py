"""What the components of a GMA model learned: `pip install gma-hf[analysis]`."""

from ..errors import extra


with extra("analysis", "gma_hf.analysis"):
    from .analyze import analyze
    from .callback import RoutingCallback
    from .tables import Analysis, alignment, bhattacharyya_distances
    from .theory import (
        affinity_properties,
        gradient_error,
        mean_gradients,
        observed_sensitivity,
        one_side,
        responsibility_gradients,
        routing_sensitivity,
    )


__all__ = [
    "Analysis",
    "RoutingCallback",
    "affinity_properties",
    "alignment",
    "analyze",
    "bhattacharyya_distances",
    "gradient_error",
    "mean_gradients",
    "observed_sensitivity",
    "one_side",
    "responsibility_gradients",
    "routing_sensitivity",
]
