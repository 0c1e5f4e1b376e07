//! What a finished merge looks like: charts from its report, as the file holds it.

use super::chart::{Chart, Series};
use indexmap::IndexMap;
use serde_json::Value;

/// The charts that a report has numbers for.
pub fn figures(report: &Value) -> Vec<Chart> {
    [scales(report), norms(report), energies(report), task_scales(report)].into_iter().flatten().collect()
}

/// The scale of every layer, by kind.
pub fn scales(report: &Value) -> Option<Chart> {
    by_kind(report, "beta", "Scale of every layer", "inter-layer scale beta")
}

fn norms(report: &Value) -> Option<Chart> {
    by_kind(report, "norm", "Size of what was merged", "norm of the merged delta, before scaling")
}

fn energies(report: &Value) -> Option<Chart> {
    let chart = by_task(
        report,
        "energy_retention",
        "Energy that the kept directions hold",
        "share of an expert's energy",
    )?;
    Some(Chart { percent: true, ..chart })
}

fn task_scales(report: &Value) -> Option<Chart> {
    by_task(report, "task_scale", "Scale of every expert in every layer", "inter-task scale")
}

/// The accuracy of each task by a report of `esmerge eval`: of the merged model, of the model that it was compared with, and of
/// each expert on its own task, as far as those are known.
pub fn accuracies(eval: &Value) -> Option<Chart> {
    let value = |task: &Value, key: &str| task.get(key)?.as_f64();
    let before = |task: &Value| Some(value(task, "value")? - value(task.get("difference")?, "value")?);
    let compared = eval.get("compared_with").and_then(Value::as_str).unwrap_or("compared with");
    let series = [
        ("merged", of_tasks(eval, |task| value(task, "value"))),
        (compared, of_tasks(eval, before)),
        ("the task's expert", of_tasks(eval, |task| value(task, "expert"))),
    ];
    let chart = by_tasks("Accuracy", "share of samples that are right", series)?;
    Some(Chart { percent: true, ..chart })
}

/// How alike the merged model's features are to those of each task's expert, or of the model that it was compared with.
pub fn likeness(eval: &Value) -> Option<Chart> {
    let cka = of_tasks(eval, |task| task.get("cka")?.as_f64());
    by_tasks("Likeness of features", "centred linear CKA", [("CKA", cka)])
}

/// Places, names and numbers.
type Points = Vec<(usize, String, f64)>;

fn of_tasks(eval: &Value, number: impl Fn(&Value) -> Option<f64>) -> Points {
    let tasks = eval.get("tasks").and_then(Value::as_array).into_iter().flatten();
    let of = |(i, task): (usize, &Value)| Some((i, task.get("task")?.as_str()?.to_owned(), number(task)?));
    tasks.enumerate().filter_map(of).collect()
}

/// A number of every task, as far as there are any.
fn by_tasks<const N: usize>(title: &str, vertical: &str, series: [(&str, Points); N]) -> Option<Chart> {
    let series = series.map(|(name, points)| Series { name: name.to_owned(), points });
    let series: Vec<Series> = series.into_iter().filter(|series| !series.points.is_empty()).collect();
    let chart = chart(title, vertical, series);
    (!chart.series.is_empty()).then(|| Chart { horizontal: "tasks".to_owned(), joined: false, ..chart })
}

fn layers(report: &Value) -> impl Iterator<Item = (&str, &Value)> {
    let layers = report.get("layers").and_then(Value::as_array).into_iter().flatten();
    layers.filter_map(|layer| Some((layer.get("name")?.as_str()?, layer)))
}

/// A layer's name without the number of its block: `encoder.*.attn.q`.
fn kind(name: &str) -> String {
    let parts = name.trim_end_matches(".weight").split('.');
    parts.map(|part| if part.parse::<usize>().is_ok() { "*" } else { part }).collect::<Vec<_>>().join(".")
}

/// The last parts of names that tell them apart.
fn short(kinds: &[String]) -> Vec<String> {
    let tail = |name: &str, parts: usize| {
        let all: Vec<&str> = name.split('.').collect();
        all[all.len().saturating_sub(parts)..].join(".")
    };
    let distinct = |parts: &usize| {
        let mut tails: Vec<String> = kinds.iter().map(|k| tail(k, *parts)).collect();
        tails.sort();
        tails.windows(2).all(|pair| pair[0] != pair[1])
    };
    let parts = (1..12).find(distinct).unwrap_or(12);
    kinds.iter().map(|k| tail(k, parts)).collect()
}

/// A number of every layer, a series for each kind of layer, in the order of the model.
fn by_kind(report: &Value, key: &str, title: &str, vertical: &str) -> Option<Chart> {
    let mut kinds: IndexMap<String, Vec<(usize, String, f64)>> = IndexMap::new();
    let numbers = layers(report).filter_map(|(name, layer)| Some((name, layer.get(key)?.as_f64()?)));
    for (i, (name, value)) in numbers.enumerate() {
        kinds.entry(kind(name)).or_default().push((i, name.to_owned(), value));
    }
    let names = short(&kinds.keys().cloned().collect::<Vec<_>>());
    let series: Vec<Series> =
        names.into_iter().zip(kinds.into_values()).map(|(name, points)| Series { name, points }).collect();
    (!series.is_empty()).then(|| chart(title, vertical, series))
}

/// A number of every layer and task, a series for each task.
fn by_task(report: &Value, key: &str, title: &str, vertical: &str) -> Option<Chart> {
    let mut tasks: IndexMap<String, Vec<(usize, String, f64)>> = IndexMap::new();
    let maps = layers(report).filter_map(|(name, layer)| Some((name, layer.get(key)?.as_object()?)));
    for (i, (name, values)) in maps.enumerate() {
        for (task, value) in values {
            let value = value.as_f64().unwrap_or(f64::NAN);
            tasks.entry(task.clone()).or_default().push((i, format!("{task}, {name}"), value));
        }
    }
    let series: Vec<Series> = tasks.into_iter().map(|(name, points)| Series { name, points }).collect();
    (!series.is_empty()).then(|| chart(title, vertical, series))
}

fn chart(title: &str, vertical: &str, series: Vec<Series>) -> Chart {
    Chart {
        title: title.to_owned(),
        vertical: vertical.to_owned(),
        horizontal: "layers, in the order of the model".to_owned(),
        series,
        percent: false,
        joined: true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_report_gives_a_chart_for_each_kind_of_number_that_it_has() {
        let layer = |i: usize, kind: &str| json!({ "name": format!("encoder.{i}.{kind}.weight"), "beta": 1.0 + i as f64, "energy_retention": { "cars": 0.9 } });
        let report = json!({ "layers": [layer(0, "attn.q"), layer(0, "mlp.q"), layer(1, "attn.q"), { "name": "head" }] });
        let charts = figures(&report);
        assert_eq!(charts.len(), 2);
        assert_eq!(charts[0].series[0].name, "attn.q");
        assert_eq!(
            charts[0].series[0].points,
            [(0, "encoder.0.attn.q.weight".to_owned(), 1.0), (2, "encoder.1.attn.q.weight".to_owned(), 2.0)]
        );
        assert_eq!(charts[1].series.len(), 1);
        assert!(figures(&json!({})).is_empty() && accuracies(&json!([])).is_none());
        let eval = json!({ "tasks": [{ "task": "cars", "value": 0.5 }] });
        assert_eq!(accuracies(&eval).map(|chart| chart.series.len()), Some(1));
        assert!(likeness(&eval).is_none());
    }

    #[test]
    fn what_a_model_is_compared_with_stands_beside_it() {
        let task = json!({ "task": "cars", "value": 0.75, "expert": 1.0, "cka": 0.5, "difference": { "value": 0.25 } });
        let eval = json!({ "tasks": [task], "compared_with": "base" });
        let series = |chart: Option<Chart>| -> Vec<(String, f64)> {
            chart.iter().flat_map(|chart| &chart.series).map(|s| (s.name.clone(), s.points[0].2)).collect()
        };
        let named =
            |pairs: &[(&str, f64)]| pairs.iter().map(|(n, v)| ((*n).to_owned(), *v)).collect::<Vec<_>>();
        assert_eq!(
            series(accuracies(&eval)),
            named(&[("merged", 0.75), ("base", 0.5), ("the task's expert", 1.0)])
        );
        assert_eq!(series(likeness(&eval)), named(&[("CKA", 0.5)]));
    }
}
