"""`segue-lab block-ablation` names the block that drives the prediction most."""


def test_it_tells_which_block_drives_the_prediction(segue, lab, cache, tmp_path):
    run = tmp_path / "run"
    settings = ("--set", "model.preset=dit-tiny", "--set", "train.batch_size=8", "--set", "train.tensorboard=false")
    assert segue("train", "static-uniform", "--data", cache, "--out", run, "--examples", "16", "--samples", "0",
                 "--device", "cpu", *settings).code == 0  # fmt: skip
    ran = lab("block-ablation", run, "--data", cache, "--clips", 2)
    assert ran.code == 0, ran.err
    assert "strongest inner block" in ran.out and "--set alignment.tap=" in ran.out
    assert "noise level" in lab("block-ablation", run, "--data", cache, "--t", 2).line
