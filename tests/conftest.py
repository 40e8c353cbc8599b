"""What tests share: the zygote that runs are forked from."""

from collections.abc import Iterator

import pytest

from runs import Zygote


@pytest.fixture(scope="session")
def zygote() -> Iterator[Zygote]:
    """Starts runs in processes of their own, with everything imported already."""
    started = Zygote()
    yield started
    started.close()
