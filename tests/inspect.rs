//! `esmerge inspect` of a recipe: what experts are like before they are merged.

#[path = "common/synthetic.rs"]
mod synthetic;

use serde_json::Value;
use synthetic::Family;

fn inspected(family: &Family, recipe: &str, arguments: &[&str]) -> Value {
    let output =
        family.esmerge(&[&["inspect", recipe, "--json", "-q", "--device", "cpu"], arguments].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn layers(inspection: &Value) -> impl Iterator<Item = &Value> {
    inspection["layers"].as_array().unwrap().iter()
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
}

#[test]
fn it_says_what_the_merge_then_keeps_and_no_other_directions_keep_more() {
    let family = Family::new();
    let inspection = inspected(&family, "recipe.yaml", &[]);
    family.merged(&[]);
    let report: Value =
        serde_json::from_slice(&std::fs::read(family.path("out/esmerge-report.json")).unwrap()).unwrap();
    assert!(layers(&inspection).count() >= 6);
    for layer in layers(&inspection) {
        let merged = report["layers"]
            .as_array()
            .unwrap()
            .iter()
            .find(|merged| merged["name"] == layer["name"])
            .unwrap();
        for (expert, kept) in merged["energy_retention"].as_object().unwrap() {
            let (esd, svd) = (numbers(&layer["esd"][expert]), numbers(&layer["svd"][expert]));
            assert_eq!(esd.len(), numbers(&layer["ranks"]).len());
            assert!((esd.last().unwrap() - kept.as_f64().unwrap()).abs() < 1e-6, "{layer}");
            assert!(esd.windows(2).all(|pair| pair[0] <= pair[1]), "{layer}");
            // of all subspaces of a size, ESD's holds most of this energy; both sums are of f32
            assert!(esd.iter().zip(&svd).all(|(esd, svd)| *svd <= esd + 1e-5), "{layer}");
            let spectrum = numbers(&layer["spectrum"][expert]);
            assert!(spectrum[0] == 1.0 && spectrum.windows(2).all(|pair| pair[0] >= pair[1]), "{layer}");
        }
    }
}

#[test]
fn an_expert_shares_all_of_its_subspace_with_itself_and_not_with_another() {
    let family = Family::new();
    let twice = synthetic::RECIPE.replace(
        "models:\n",
        "models:\n  - {name: twin, model: experts/cars, calibration: calibration/cars.safetensors}\n",
    );
    family.write("twice.yaml", twice);
    let inspection = inspected(&family, "twice.yaml", &[]);
    assert_eq!(inspection["experts"], serde_json::json!(["twin", "cars", "birds"]));
    for layer in layers(&inspection) {
        let overlap: Vec<Vec<f64>> = layer["overlap"].as_array().unwrap().iter().map(numbers).collect();
        for (i, row) in overlap.iter().enumerate() {
            assert!((row[i] - 1.0).abs() < 1e-5, "{layer}");
            for (other, share) in overlap.iter().zip(row) {
                assert!((share - other[i]).abs() < 1e-6, "{layer}");
            }
        }
        assert!((overlap[0][1] - 1.0).abs() < 1e-5, "the same expert: {layer}");
        assert!(overlap[0][2] < 0.999, "another: {layer}");
    }
}

#[test]
fn the_page_has_the_numbers_of_the_table_and_what_cannot_be_inspected_is_refused() {
    let family = Family::new();
    let output = family.esmerge(&["inspect", "recipe.yaml", "--html", "page.html", "-q", "--device", "cpu"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let (table, page) = (
        String::from_utf8(output.stdout).unwrap(),
        std::fs::read_to_string(family.path("page.html")).unwrap(),
    );
    assert!(
        table.contains("ESD keeps")
            && table.contains("1 cars")
            && table.lines().all(|line| line.chars().count() <= 100),
        "{table}"
    );
    assert!(page.matches("<svg").count() == 4 && page.contains("Overlap of subspaces"), "{page}");

    family.write("sum.yaml", "merge_method: linear\nbase_model: base\nmodels: [{model: experts/cars}]\n");
    for (arguments, words) in [
        (&["inspect", "sum.yaml", "--device", "cpu"][..], "linear decomposes no layer"),
        (&["inspect", "recipe.yaml", "--eval", "eval.json"], "--eval belongs to a merged model"),
        (&["inspect", "gone.yaml"], "gone.yaml"),
    ] {
        let output = family.esmerge(arguments);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && error.contains(words), "{error}");
    }
}

#[test]
fn accuracies_come_into_the_models_card_and_take_the_place_of_earlier_ones() {
    let family = Family::new();
    family.merged(&[]);
    let task = |value: f64| serde_json::json!({ "task": "cars", "value": value, "expert": 0.9, "cka": 0.5, "difference": { "value": 0.25 } });
    let into_the_card = |value: f64| {
        let eval = serde_json::json!({
            "tasks": [task(value)], "average": value, "compared_with": "base", "difference": { "value": 0.25 },
        });
        family.write("eval.json", eval.to_string());
        let said =
            family.esmerge(&["inspect", "out", "--eval", "eval.json", "--card", "--html", "page.html"]);
        assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
        std::fs::read_to_string(family.path("out/README.md")).unwrap()
    };
    let before = std::fs::read_to_string(family.path("out/README.md")).unwrap();
    let first = into_the_card(0.5);
    assert!(
        first.contains("On average over 1 tasks: 50.0%, base 25.0%, each expert on its own task 90.0%."),
        "{first}"
    );
    assert!(first.contains("](accuracy.svg)"), "{first}");
    let picture = std::fs::read_to_string(family.path("out/accuracy.svg")).unwrap();
    assert!(picture.contains("Accuracy") && picture.contains("base"), "{picture}");
    let page = std::fs::read_to_string(family.path("page.html")).unwrap();
    assert!(page.contains("Likeness of features") && page.contains("0.5000"), "{page}");

    let second = into_the_card(0.75);
    assert_eq!(second, first.replace("50.0%", "75.0%").replace("25.0%", "50.0%"));
    let rest = |card: &str| card.split("\n## Accuracy\n").next().unwrap().to_owned();
    assert_eq!(rest(&second), before.split("\n## Recipe\n").next().unwrap());
    assert!(second.ends_with(before.rsplit("\n## Recipe\n").next().unwrap()));

    family.write("out/README.md", "a page of one's own");
    let said = family.esmerge(&["inspect", "out", "--eval", "eval.json", "--card"]);
    assert!(!said.status.success());
    let why = String::from_utf8_lossy(&said.stderr).split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(why.contains("README.md: it is not the card of a merge"), "{why}");
    assert_eq!(std::fs::read_to_string(family.path("out/README.md")).unwrap(), "a page of one's own");
}
