"""Item graphs over modality features, on torch_geometric."""

from mmfuse.graph.fuse import LearnedGraph, WeightedEdges, fuse_graphs, mix_graphs
from mmfuse.graph.knn import knn_graph, knn_graphs
from mmfuse.graph.neighbours import Neighbours, nearest_neighbours
from mmfuse.graph.propagate import borrow, propagate

__all__ = [
    "nearest_neighbours",
    "Neighbours",
    "knn_graph",
    "knn_graphs",
    "fuse_graphs",
    "mix_graphs",
    "LearnedGraph",
    "WeightedEdges",
    "propagate",
    "borrow",
]
