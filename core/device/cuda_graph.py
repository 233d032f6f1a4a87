"""Captures work as a CUDA graph, which is replayed by one launch.

https://pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
"""
import torch


class GraphPool:
    """A stream, and memory that graphs share of which only one runs at a time: that of the largest."""

    def __init__(self):
        self.stream = torch.cuda.Stream()
        self.pool = torch.cuda.graph_pool_handle()

    def capture(self, call):
        """Records call() and returns the graph. Everything that it launches must have run before."""
        # a capture records the launches and runs none of them
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool, stream=self.stream):
            call()
        return graph

    def replayable(self, call, warm_ups=3):
        """Returns a function that replays call() as a graph."""
        # libraries make their handles on first use, which a capture does not allow
        with torch.cuda.stream(self.stream):
            for _ in range(warm_ups):
                call()
        return self.capture(call).replay
