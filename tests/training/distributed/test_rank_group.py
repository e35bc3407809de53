"""Exchange between ranks, and the watchdog of a rank that hangs."""

import os

RANK = """
    import os, sys, time
    from datetime import timedelta
    from pathlib import Path
    import torch.distributed as dist
    from vigil_data.errors import UserError
    from vigil_training.distributed.rank_group import RankGroup, is_peer_lost
    from vigil_training.distributed.watchdog import Watchdog
    from vigil_training.distributed.world import find_world

    world, folder = find_world(), Path(os.environ["FOLDER"])
    dist.init_process_group("gloo", init_method=f"tcp://{world.address}:{world.port}", rank=world.rank, world_size=world.size)
    ranks = RankGroup(world, timedelta(seconds=60))
    assert ranks.gather([world.rank, 7]).tolist() == [[0, 7], [1, 7]]
    assert ranks.gather_objects({"rank": world.rank}) == [{"rank": 0}, {"rank": 1}]
    assert ranks.run_on_rank_0(lambda: f"by {world.rank}") == "by 0"

    def refuse():
        raise UserError("wrong", "twice")

    try:
        ranks.run_on_rank_0(refuse)
    except UserError as error:
        assert error.everywhere
        assert str(error) == "wrong\\ntwice"
        (folder / f"refused-{world.rank}").touch()
    with Watchdog(2.0, world.rank) as watchdog:
        watchdog.start(folder / "stacks")
        watchdog.beat("step 3")

        def hanging_function():
            time.sleep(60)

        if world.rank:
            hanging_function()
        try:
            ranks.barrier()
        except RuntimeError as error:  # the watchdog of the other rank was a moment earlier
            assert is_peer_lost(error), error
            time.sleep(60)
"""


def test_rank_group_and_watchdog_on_two_ranks(tmp_path, launched):
    process = launched(RANK, env={**os.environ, "FOLDER": str(tmp_path), "OMP_NUM_THREADS": "1"})
    process.communicate(timeout=90)
    assert process.returncode == 85
    assert (tmp_path / "refused-0").exists()
    assert (tmp_path / "refused-1").exists()
    stacks = [(tmp_path / "stacks" / f"rank-{rank}.txt").read_text() for rank in range(2)]
    for rank, text in enumerate(stacks):
        assert text.startswith(f"rank {rank} on ")
        assert "no progress since step 3" in text.splitlines()[0]
    assert "in barrier" in stacks[0]
    assert "in hanging_function" in stacks[1]
