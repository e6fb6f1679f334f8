"""DeepSpeed and xformers in states that the whole command is not run with elsewhere."""

from doctor_runs import ask, plant


def test_a_deepspeed_that_does_not_import_is_a_problem(tmp_path):
    path = plant(tmp_path, "deepspeed", "raise RuntimeError('CUDA_HOME does not exist')")
    finding = ask("from ttd.checkup import packages; say(packages.deepspeed())", PYTHONPATH=path)
    assert finding["status"] == "problem"
    assert finding["text"].endswith("is broken: RuntimeError: CUDA_HOME does not exist")
    assert finding["remedy"].startswith("pip install --force-reinstall 'deepspeed")


def test_what_deepspeed_lacks_to_build_its_ops_is_told(tmp_path):
    finding = ask("from ttd.checkup import packages; say(packages.deepspeed())", PATH=str(tmp_path))
    assert finding["status"] == "ok"
    assert finding["text"].endswith("none could be built (ninja and a C++ compiler missing)")


def test_live_kernels_of_xformers_are_told(tmp_path):
    """No real ones run without a GPU; a package that answers stands for them."""
    path = plant(tmp_path, "xformers", "")
    (tmp_path / "xformers" / "ops.py").write_text("def memory_efficient_attention(q, k, v):\n    return q\n")
    finding = ask("from ttd.checkup import packages; say(packages.xformers())", PYTHONPATH=path)
    assert finding["text"].endswith("its kernels run on cpu")
