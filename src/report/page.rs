//! A report as one page of HTML that needs nothing else: its numbers as tables, and the charts made of them.

use super::chart::{Chart, text};
use super::figures::{accuracies, figures, likeness};
use serde_json::Value;
use std::fmt::Write;

const STYLE: &str = "\
:root{color-scheme:light dark;--t:#1b1d22;--q:#565b66;--p:#fff;--l:#d4d7dd}\
@media screen and (prefers-color-scheme:dark){:root{--t:#e6e7ea;--q:#a2a8b4;--p:#14161a;--l:#363b45}}\
*{box-sizing:border-box}body{margin:0 auto;max-width:860px;padding:24px 16px 48px;font:16px/1.5 system-ui,sans-serif;\
color:var(--t);background:var(--p)}h1{font-size:1.5rem;margin:0 0 4px}h2{font-size:1.15rem;margin:32px 0 8px}\
.q{color:var(--q)}svg{width:100%;min-width:600px;height:auto;display:block;margin:18px 0 26px}.w{overflow-x:auto}\
table{border-collapse:collapse;width:100%;font-size:.9rem}th,td{text-align:left;padding:5px 12px 5px 0;\
border-bottom:1px solid var(--l);vertical-align:top}th{color:var(--q);font-weight:600}\
.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}td,li{overflow-wrap:anywhere}td:first-child{min-width:11em}summary{cursor:pointer}\
@media (max-width:520px){th,td{font-size:.82rem;padding-right:8px}}\
@media print{body{max-width:none;padding:0}svg{min-width:0}details>*{display:block}svg,tr{break-inside:avoid}}";

/// The page of a report, `esmerge-report.json` as it stands, and of what `esmerge eval --json` says of the model.
pub fn page(report: &Value, eval: Option<&Value>) -> String {
    let mut html = String::new();
    write_page(&mut html, report, eval).unwrap_or_default(); // writing to a String cannot fail
    html
}

fn write_page(html: &mut String, report: &Value, eval: Option<&Value>) -> std::fmt::Result {
    let word = |key: &str| report.get(key).and_then(Value::as_str).unwrap_or_default();
    let title = format!("Merge of {} by {}", word("base_model"), word("merge_method"));
    write_start(html, &title, word("esmerge"))?;
    write_facts(html, report)?;
    if let Some(eval) = eval {
        write_accuracy(html, eval)?;
    }
    let charts = figures(report);
    if !charts.is_empty() {
        writeln!(html, "<h2>Layer by layer</h2>")?;
    }
    charts.iter().try_for_each(|chart| write_chart(html, chart))?;
    write_groups(html, report)?;
    write_layers(html, report)?;
    write_warnings(html, list(report, "warnings").filter_map(Value::as_str))?;
    writeln!(html, "</main></body></html>")
}

/// All before what a page is about.
pub(super) fn write_start(html: &mut String, title: &str, version: &str) -> std::fmt::Result {
    write!(
        html,
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"><title>{0}</title><style>{STYLE}</style></head>\n\
         <body><main><h1>{0}</h1>\n<p class=\"q\">by esmerge {1}</p>\n",
        text(title),
        text(version)
    )
}

pub(super) fn write_warnings<'a>(
    html: &mut String,
    warnings: impl Iterator<Item = &'a str>,
) -> std::fmt::Result {
    let items: Vec<String> = warnings.map(|warning| format!("<li>{}</li>", text(warning))).collect();
    if items.is_empty() {
        return Ok(());
    }
    writeln!(html, "<h2>Warnings</h2><ul>{}</ul>", items.join("\n"))
}

fn list<'a>(value: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    value.get(key).and_then(Value::as_array).into_iter().flatten()
}

/// What a value is in words: text without quotes, lists with commas.
fn words(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(all) => all.iter().map(words).collect::<Vec<_>>().join(", "),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

fn write_facts(html: &mut String, report: &Value) -> std::fmt::Result {
    const FACTS: [(&str, &str); 9] = [
        ("base", "base_model"),
        ("experts", "models"),
        ("method", "merge_method"),
        ("preset", "preset"),
        ("alpha", "alpha"),
        ("accuracy", "accuracy"),
        ("seed", "seed"),
        ("device", "device"),
        ("changed on the command line", "overrides"),
    ];
    writeln!(html, "<table>")?;
    for (name, key) in FACTS {
        if let Some(value) = report.get(key) {
            writeln!(html, "<tr><th scope=\"row\">{name}</th><td>{}</td></tr>", text(&words(value)))?;
        }
    }
    writeln!(html, "</table>")
}

/// A chart, which a narrow screen shows part of at a time: its letters stay large enough to be read.
pub(super) fn write_chart(html: &mut String, chart: &Chart) -> std::fmt::Result {
    let label = text(&chart.title);
    writeln!(
        html,
        "<div class=\"w\" tabindex=\"0\" role=\"region\" aria-label=\"{label}\">{}</div>",
        chart.svg()
    )
}

/// The name of a column, and whether its numbers stand on the right.
pub(super) type Column<'a> = (&'a str, bool);

/// A table of some rows.
pub(super) fn write_table(
    html: &mut String,
    columns: &[Column<'_>],
    mut rows: impl Iterator<Item = Vec<String>>,
) -> std::fmt::Result {
    write_head(html, columns)?;
    rows.try_for_each(|cells| write_row(html, columns, &cells))?;
    writeln!(html, "{END}")
}

fn write_head(html: &mut String, columns: &[Column<'_>]) -> std::fmt::Result {
    write!(
        html,
        "<div class=\"w\" tabindex=\"0\" role=\"region\" aria-label=\"{}\"><table><thead><tr>",
        text(columns[0].0)
    )?;
    for (name, right) in columns {
        let class = if *right { " class=\"n\"" } else { "" };
        write!(html, "<th scope=\"col\"{class}>{}</th>", text(name))?;
    }
    writeln!(html, "</tr></thead><tbody>")
}

fn write_row(html: &mut String, columns: &[Column<'_>], cells: &[String]) -> std::fmt::Result {
    write!(html, "<tr>")?;
    for ((_, right), cell) in columns.iter().zip(cells) {
        write!(html, "<td{}>{}</td>", if *right { " class=\"n\"" } else { "" }, text(cell))?;
    }
    writeln!(html, "</tr>")
}

const END: &str = "</tbody></table></div>";

fn write_accuracy(html: &mut String, eval: &Value) -> std::fmt::Result {
    writeln!(html, "<h2>Accuracy</h2>")?;
    [accuracies(eval), likeness(eval)].iter().flatten().try_for_each(|chart| write_chart(html, chart))?;
    let columns =
        [("task", false), ("merged", true), ("95% interval", true), ("its expert", true), ("CKA", true)];
    write_head(html, &columns)?;
    let percent = |value: Option<&Value>| {
        value.and_then(Value::as_f64).map_or_else(String::new, |v| format!("{:.1} %", 100.0 * v))
    };
    for task in list(eval, "tasks") {
        let ends = [0, 1].map(|i| percent(task.get("interval").and_then(|ends| ends.get(i))));
        let cells = [
            words(task.get("task").unwrap_or(&Value::Null)),
            percent(task.get("value")),
            ends.join(" to "),
            percent(task.get("expert")),
            task.get("cka").and_then(Value::as_f64).map_or_else(String::new, |v| format!("{v:.4}")),
        ];
        write_row(html, &columns, &cells)?;
    }
    writeln!(html, "{END}")
}

/// Smallest and largest of a range, and its mean.
fn range(value: Option<&Value>, scale: f64) -> String {
    let number = |key: &str| value.and_then(|v| v.get(key)?.as_f64());
    match (number("min"), number("mean"), number("max")) {
        (Some(min), Some(mean), Some(max)) if min != max => {
            format!("{:.2} ({:.2} to {:.2})", scale * mean, scale * min, scale * max)
        }
        (Some(min), ..) => format!("{:.2}", scale * min),
        _ => String::new(),
    }
}

fn write_groups(html: &mut String, report: &Value) -> std::fmt::Result {
    let columns = [
        ("layers", false),
        ("treatment", false),
        ("tensors", true),
        ("rank", true),
        ("energy kept, %", true),
        ("beta", true),
    ];
    writeln!(html, "<h2>What was done</h2>")?;
    write_head(html, &columns)?;
    for group in list(report, "groups") {
        let word = |key: &str| words(group.get(key).unwrap_or(&Value::Null));
        let name = [word("name"), word("reason"), "all other tensors".to_owned()];
        let cells = [
            name.into_iter().find(|name| !name.is_empty()).unwrap_or_default(),
            word("role"),
            word("tensors"),
            word("rank"),
            range(group.get("energy_retention"), 100.0),
            range(group.get("beta"), 1.0),
        ];
        write_row(html, &columns, &cells)?;
    }
    writeln!(html, "{END}")
}

/// Every layer with numbers, as the file has them.
fn write_layers(html: &mut String, report: &Value) -> std::fmt::Result {
    let columns =
        [("layer", false), ("treatment", false), ("norm", true), ("beta", true), ("energy kept", false)];
    writeln!(html, "<details><summary>Every layer</summary>")?;
    write_head(html, &columns)?;
    for layer in list(report, "layers").filter(|layer| layer.get("norm").is_some()) {
        let word = |key: &str| words(layer.get(key).unwrap_or(&Value::Null));
        let kept = layer.get("energy_retention").and_then(Value::as_object).into_iter().flatten();
        let kept: Vec<String> = kept.map(|(task, share)| format!("{task} {}", words(share))).collect();
        write_row(
            html,
            &columns,
            &[word("name"), word("role"), word("norm"), word("beta"), kept.join(", ")],
        )?;
    }
    writeln!(html, "{END}</details>")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_page_has_the_reports_numbers_and_none_of_its_markup() {
        let report = json!({
            "esmerge": "1", "base_model": "<b>", "merge_method": "esm", "models": ["a", "c&d"], "alpha": 0.1234567890123,
            "layers": [{ "name": "l.0.q", "role": "esm", "norm": 1.234567890123, "beta": 0.75 }],
            "groups": [{ "reason": "not decomposed", "role": "copied", "tensors": 3 }], "warnings": ["<script>"],
        });
        let page = page(
            &report,
            Some(&json!({ "tasks": [{ "task": "t", "value": 0.5, "interval": [0.25, 0.75] }] })),
        );
        for part in [
            "0.1234567890123",
            "1.234567890123",
            "a, c&amp;d",
            "25.0 % to 75.0 %",
            "not decomposed",
            "&lt;script&gt;",
        ] {
            assert!(page.contains(part), "{part}: {page}");
        }
        assert!(!page.contains("<script") && !page.contains("<b>"));
        assert!(page.starts_with("<!doctype html>") && page.trim_end().ends_with("</html>"));
    }
}
