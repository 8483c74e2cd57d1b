"""Running tasks on a dask cluster, a few ahead of the one whose result is needed next."""

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from convlstm_wx.errors import ConfigError, ConvlstmWxError

_WAIT_S = 10
_AHEAD_PER_THREAD = 2

Task = TypeVar("Task")


def run_on(
    address: str, work: Callable[[Any, Task], Any], common: Any, tasks: Sequence[Task]
) -> Iterator[tuple[Task, Any]]:
    """The tasks in their order, each with work(common, task) as a worker found it.

    Only a few results wait at any time, so that memory does not grow with the number of tasks.

    Raises:
        ConfigError: without the distributed package, for a scheduler that cannot be reached or has no workers, or if
            workers die.
        ConvlstmWxError: what the work itself raises.
    """
    client = _connect(address)
    try:
        threads = sum(worker["nthreads"] for worker in client.scheduler_info(n_workers=-1)["workers"].values())
        waiting: deque[tuple[Task, Any]] = deque()
        ahead = iter(tasks)
        for task in ahead:
            waiting.append((task, client.submit(work, common, task, pure=False)))
            if len(waiting) > _AHEAD_PER_THREAD * threads:
                yield _result(address, *waiting.popleft())
        while waiting:
            yield _result(address, *waiting.popleft())
    finally:
        client.close(timeout=_WAIT_S)


def check_cluster(address: str) -> None:
    """See that there is a scheduler with workers, before work begins that may take long.

    Raises:
        ConfigError: as :func:`run_on`.
    """
    _connect(address).close(timeout=_WAIT_S)


def _connect(address: str) -> Any:
    try:
        import distributed
    except ImportError as error:
        raise ConfigError(
            "--dask-scheduler: needs the distributed package: pip install 'convlstm_wx[cluster]'"
        ) from error
    try:
        asyncio.run(asyncio.wait_for(_ask(address), _WAIT_S))
    except Exception as error:  # whatever else may answer at that address
        raise ConfigError(
            f"--dask-scheduler {address}: no scheduler answers there; give its address, such as tcp://10.0.0.1:8786"
        ) from error
    client = distributed.Client(address, timeout=_WAIT_S, set_as_default=False)
    try:
        client.wait_for_workers(1, timeout=_WAIT_S)
    except TimeoutError as error:
        client.close(timeout=_WAIT_S)
        raise ConfigError(f"--dask-scheduler {address}: has no workers; start some: dask worker {address}") from error
    return client


async def _ask(address: str) -> None:
    """Ask the scheduler who it is: a client that fails to connect would go on trying in the background."""
    from distributed import Security
    from distributed.core import rpc

    async with rpc(address, connection_args=Security().get_connection_args("client")) as scheduler:
        await scheduler.identity(n_workers=0)


def _result(address: str, task: Task, future: Any) -> tuple[Task, Any]:
    try:
        return task, future.result()
    except ConvlstmWxError:
        raise
    except Exception as error:  # a worker that dies, or lacks our package, raises almost anything
        raise ConfigError(
            f"--dask-scheduler {address}: a worker failed ({type(error).__name__}: {str(error)[:200]}); workers need "
            "convlstm_wx and the input files under the same paths"
        ) from error
