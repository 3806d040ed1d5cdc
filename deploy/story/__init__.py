"""The story of Regis, played without a person: `regis demo --once`."""

from deploy.story.play import play

__all__ = ["play"]
