"""Several targets in one stream, run as one batch."""

from __future__ import annotations

from vil_tracker_core.geometry import Box, Image
from vil_tracker_core.tracking.network import Network
from vil_tracker_core.tracking.online import Track, TrackerConfig, TrackResult, step_tracks


class MultiTracker:
    """Tracks by id, each with a memory of its own, added and removed at any frame."""

    def __init__(self, network: Network, config: TrackerConfig | None = None) -> None:
        self.network, self.config = network, config or TrackerConfig()
        self._tracks: dict[str, Track] = {}

    @property
    def ids(self) -> list[str]:
        """Ids of all tracks, in the order in which they were added."""
        return list(self._tracks)

    def add(self, track_id: str, frame: Image, box: Box, stamp: float) -> TrackResult:
        """Starts a track; raises ValueError where the id is in use or the box is not usable."""
        if track_id in self._tracks:
            raise ValueError(f"track id {track_id!r} is in use")
        track = Track(self.network, frame, box, stamp, self.config)
        self._tracks[track_id] = track
        return track.result

    def remove(self, track_id: str) -> None:
        """Ends a track; raises KeyError where there is none of that id."""
        del self._tracks[track_id]

    def adopt(self, other: MultiTracker) -> None:
        """Takes over all tracks of another tracker on the same net; raises ValueError where an
        id is in use in both."""
        shared = set(self._tracks) & set(other._tracks)
        if shared:
            raise ValueError(f"track ids in use: {', '.join(sorted(shared))}")
        self._tracks.update(other._tracks)

    def configure(self, config: TrackerConfig) -> None:
        """Changes the thresholds of all tracks, those to come included."""
        self.config = config
        for track in self._tracks.values():
            track.config = config

    def update(self, frame: Image, stamp: float) -> dict[str, TrackResult]:
        """All tracks in the next frame."""
        results = step_tracks(self.network, list(self._tracks.values()), frame, stamp)
        return dict(zip(self._tracks, results, strict=True))
