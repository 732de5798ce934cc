"""Arrays in, `plotly.graph_objects.Figure` out: the plots, low in the house so that all may use them.

One file a figure; `theme` holds the one visual language. A figure shows in a notebook as it is, and
`fig.update_layout(template="seeing-dark")` turns any of them dark.
"""

from seeing.figures import theme
from seeing.figures.auroc import auroc_by_depth
from seeing.figures.heads import layer_head_map
from seeing.figures.heat import heat_rgba
from seeing.figures.methods import method_comparison
from seeing.figures.overlay import attention_overlay
from seeing.figures.rapt import rapt_by_depth

__all__ = [
    "attention_overlay",
    "auroc_by_depth",
    "heat_rgba",
    "layer_head_map",
    "method_comparison",
    "rapt_by_depth",
    "theme",
]
