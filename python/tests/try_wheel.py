"""What the wheel can do, on the bundled example: run by python/test in a fresh environment."""

import json
import sys
import unittest
from pathlib import Path

import esmerge

EXAMPLE = Path(sys.argv.pop())


def recipe(**more):
    names = ["fashion", "letters", "animals", "digits8"]
    models = [{"model": EXAMPLE / "experts" / n, "calibration": EXAMPLE / "calibration" / f"{n}.safetensors"} for n in names]
    return {"merge_method": "esm", "base_model": EXAMPLE / "base", "models": models, "parameters": {"alpha": 0.5},
            "out_dtype": "float32", **more}


class Wheel(unittest.TestCase):
    def test_a_mapping_and_a_file_give_the_same_model(self):
        heard = []
        report = esmerge.merge(recipe(), "merged", device="cpu", progress=heard.append)
        self.assertEqual((report["alpha"], report["merge_method"]), (0.5, "esm"))
        again = esmerge.merge(EXAMPLE / "recipe.yaml", "again", device="cpu", progress=False, seed=0)
        self.assertEqual(again["models"], report["models"])
        first, second = (Path(out, "model.safetensors").read_bytes() for out in ("merged", "again"))
        self.assertEqual(first, second)
        self.assertEqual(esmerge.load_report("merged")["alpha"], 0.5)
        self.assertTrue(all(0 <= p.share <= 1 for p in heard), heard)
        self.assertEqual(list(Path(".").glob(".esmerge-recipe-*")), [])

    def test_evaluation_gives_accuracies(self):
        esmerge.merge(recipe(), "to-evaluate", device="cpu", progress=False)
        report = esmerge.evaluate("to-evaluate", EXAMPLE / "tasks" / "letters.safetensors", device="cpu", progress=False)
        self.assertEqual(report["tasks"][0]["task"], "letters")
        self.assertGreater(report["tasks"][0]["value"], 0.5)

    def test_a_plan_needs_no_output(self):
        plan = esmerge.plan(recipe())
        self.assertEqual(len(plan["models"]), 4)

    def test_capture_writes_the_inputs_of_layers(self):
        out = esmerge.capture(EXAMPLE / "base", EXAMPLE / "tasks" / "letters.safetensors", "inputs.safetensors", device="cpu")
        self.assertGreater(Path(out).stat().st_size, 1000)

    def test_what_the_program_says_is_the_exceptions_message(self):
        with self.assertRaises(esmerge.Error) as raised:
            esmerge.merge(recipe(merge_method="esn"), "never", device="cpu", progress=False)
        self.assertIn("esn", str(raised.exception))
        self.assertEqual(raised.exception.code, 2)
        self.assertFalse(Path("never").exists())

    def test_the_program_is_the_wheels(self):
        self.assertTrue(esmerge.program().startswith(sys.prefix), esmerge.program())


if __name__ == "__main__":
    unittest.main(verbosity=1)
