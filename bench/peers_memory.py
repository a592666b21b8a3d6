"""Bytes that torch's CPU allocator hands out: forge_optim.AllocationRecorder, or without the package the profiler.

Both begin at zero, so what lived before (the model's weights) is not counted, and freeing it is not either.
"""

from torch.profiler import ProfilerActivity, profile, record_function


class ProfilerRecorder:
    """What torch's profiler saw of the same allocations. `peak_bytes` is known after the end only."""

    MARK = "peers.reset_peak"

    def __enter__(self):
        self.profile = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
        self.profile.__enter__()
        return self

    def reset_peak(self):
        with record_function(self.MARK):
            pass

    def __exit__(self, *failure):
        self.profile.__exit__(*failure)
        self.live_bytes = self.peak_bytes = 0
        events = [e for e in self.profile.profiler.kineto_results.events() if e.name() in ("[memory]", self.MARK)]
        for event in sorted(events, key=lambda e: e.start_ns()):
            if event.name() == self.MARK:
                self.peak_bytes = self.live_bytes
            else:
                self.live_bytes += event.nbytes()
                self.peak_bytes = max(self.peak_bytes, self.live_bytes)


def recorder():
    try:
        from forge_optim import AllocationRecorder
    except ImportError:
        return ProfilerRecorder()
    return AllocationRecorder()
