"""Arrays in, `plotly.graph_objects.Figure` out: the plots, low in the house so that all may use them.

One file a figure; `theme` holds the one visual language. A figure shows in a notebook as it is, and
`fig.update_layout(template="seeing-dark")` turns any of them dark.
"""

from seeing.figures import theme
from seeing.figures.attribution import attribution_scatter
from seeing.figures.auroc import auroc_by_depth
from seeing.figures.groups import accuracy_by_group
from seeing.figures.heads import layer_head_map
from seeing.figures.heat import heat_rgba
from seeing.figures.knockout import knockout_curves
from seeing.figures.lens import lens_by_depth, lens_grid, words_over_image
from seeing.figures.methods import method_comparison
from seeing.figures.overlay import attention_overlay
from seeing.figures.patching import direct_map, patching_map
from seeing.figures.rapt import rapt_by_depth
from seeing.figures.sinks import sink_pull_by_depth
from seeing.figures.stability import choice_by_size

__all__ = [
    "accuracy_by_group",
    "attention_overlay",
    "attribution_scatter",
    "auroc_by_depth",
    "choice_by_size",
    "direct_map",
    "heat_rgba",
    "knockout_curves",
    "layer_head_map",
    "lens_by_depth",
    "lens_grid",
    "method_comparison",
    "patching_map",
    "rapt_by_depth",
    "sink_pull_by_depth",
    "theme",
    "words_over_image",
]
