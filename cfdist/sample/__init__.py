"""The embedded sample set: a small data set in WIDER FACE's layout, generated at first use.

It shows a person who has no data set that the whole chain works. Its AP measures nothing else.
"""

from cfdist.sample.files import SAMPLE_VERSION, SamplePaths, ensure_sample

__all__ = ["SAMPLE_VERSION", "SamplePaths", "ensure_sample"]
