use super::{ACCURACIES, ExpertsReport, Group, Range, Report, SCALES};
use serde_json::Value;
use std::fmt::Write;

/// The `README.md` of a merged model.
pub fn model_card(report: &Report, recipe: &str) -> String {
    let mut card = String::new();
    write_card(&mut card, report, recipe).unwrap_or_default(); // writing to a String cannot fail
    card
}

/// How the part of a card about accuracy begins, and the part behind it.
const ACCURACY: &str = "\n## Accuracy\n";
const RECIPE: &str = "\n## Recipe\n";

/// A card with what `esmerge eval --json` says of the model, in place of what it said before; none if this is no card of a merge.
pub fn with_accuracies(card: &str, eval: &Value) -> Option<String> {
    let end = card.find(RECIPE)?;
    let start = card[..end].find(ACCURACY).unwrap_or(end);
    let average = eval.get("average")?.as_f64()?;
    let compared = eval.get("compared_with").and_then(Value::as_str);
    let before = compared.zip(eval.get("difference").and_then(|d| d.get("value")?.as_f64()));
    let before = before.map(|(name, gain)| format!(", {} {}", line(name), share(average - gain)));
    let tasks = eval.get("tasks")?.as_array()?;
    let experts: Option<Vec<f64>> = tasks.iter().map(|task| task.get("expert")?.as_f64()).collect();
    let experts = experts.filter(|all| !all.is_empty());
    let experts = experts.map(|all| {
        format!(", each expert on its own task {}", share(all.iter().sum::<f64>() / all.len() as f64))
    });
    let said = format!(
        "{ACCURACY}\n![The accuracy on every task]({ACCURACIES})\n\nOn average over {} tasks: {}{}{}.\n",
        tasks.len(),
        share(average),
        before.unwrap_or_default(),
        experts.unwrap_or_default()
    );
    Some([&card[..start], &said, &card[end..]].concat())
}

fn share(value: f64) -> String {
    format!("{:.1}%", 100.0 * value)
}

fn write_card(card: &mut String, report: &Report, recipe: &str) -> std::fmt::Result {
    write_front_matter(card, report)?;
    writeln!(card, "# Merge of {} by {}\n", line(&report.base_model), method(report))?;
    writeln!(
        card,
        "This model was merged from {} fine-tuned models with [esmerge](https://crates.io/crates/esmerge) {}.\n",
        report.models.len(),
        report.esmerge
    )?;
    writeln!(card, "| | |\n|---|---|")?;
    writeln!(card, "| base | {} |", line(&report.base_model))?;
    writeln!(card, "| experts | {} |", line(&experts(report)))?;
    writeln!(card, "| method | {} |", method(report))?;
    writeln!(card, "| alpha | {}{} |", report.alpha, scope(report))?;
    if report.calibrated == Some(false) {
        writeln!(card, "| calibration | none (data-free form) |")?;
    }
    if let (Some(accuracy), Some(seed)) = (&report.accuracy, report.seed) {
        writeln!(card, "| accuracy, seed | {accuracy}, {seed} |")?;
    }
    if !report.modules.is_empty() {
        writeln!(card, "| modules summed | {} |", line(&report.modules.join(", ")))?;
    }
    for change in &report.overrides {
        writeln!(card, "| changed on the command line | {} |", line(change))?;
    }
    writeln!(
        card,
        "\n## What was done\n\n| layers | treatment | tensors | energy kept | beta |\n|---|---|---|---|---|"
    )?;
    for group in &report.groups {
        writeln!(
            card,
            "| {} | {} | {} | {} | {} |",
            line(&layers(group)),
            line(&treatment(group)),
            group.tensors,
            percent(&group.energy_retention),
            range(&group.beta)
        )?;
    }
    if report.layers.iter().any(|layer| layer.beta.is_some()) {
        writeln!(card, "\n![The inter-layer scale beta of every layer]({SCALES})")?;
    }
    if let Some(account) = &report.account {
        writeln!(card, "\n## Every tensor\n\n```text\n{account}\n```")?;
    }
    if let Some(experts) = &report.experts {
        write_experts(card, report, experts)?;
    }
    if !report.warnings.is_empty() {
        writeln!(card, "\n## Warnings\n")?;
        report.warnings.iter().try_for_each(|w| writeln!(card, "- {}", line(&without_paths(w, report))))?;
    }
    let fence = fence(recipe);
    writeln!(card, "{RECIPE}\n{fence}yaml\n{}\n{fence}", recipe.trim_end())
}

/// What the hub reads: models by their names there, if they have any.
fn write_front_matter(card: &mut String, report: &Report) -> std::fmt::Result {
    let mut hub: Vec<&str> = report.inputs.iter().filter_map(|input| input.hub.as_deref()).collect();
    hub.dedup();
    match hub[..] {
        [] => writeln!(card, "---\nbase_model: {}", quoted(&report.base_model))?,
        _ => {
            writeln!(card, "---\nbase_model:")?;
            hub.iter().try_for_each(|name| writeln!(card, "- {}", quoted(name)))?;
        }
    }
    if let Some(library) = report.library_name {
        writeln!(card, "library_name: {library}")?;
    }
    writeln!(card, "tags:\n- merge\n- esmerge\n---\n")
}

/// The experts by name, with their names in the hub and their weights in the sum where they have some.
fn experts(report: &Report) -> String {
    let of = |name: &String| report.inputs.iter().skip(1).find(|input| input.name == *name);
    let expert = |name: &String| {
        let hub = of(name).and_then(|input| input.hub.clone()).filter(|hub| hub != name);
        let weight = of(name).and_then(|input| input.weight).map(|weight| format!("weight {weight}"));
        let more: Vec<String> = hub.into_iter().chain(weight).collect();
        if more.is_empty() { name.clone() } else { format!("{name} ({})", more.join(", ")) }
    };
    report.models.iter().map(expert).collect::<Vec<_>>().join(", ")
}

/// Text of others on one line, in a cell of a table or not.
pub(super) fn line(text: &str) -> String {
    let visible = |c: char| if c.is_control() { ' ' } else { c };
    text.chars().map(visible).collect::<String>().replace('|', "\\|")
}

/// A message without the paths that its models had on this machine.
fn without_paths(text: &str, report: &Report) -> String {
    let inputs = report.inputs.iter();
    inputs.fold(text.to_owned(), |text, input| match input.given.as_str() {
        "" | "." | "/" => text,
        given => text.replace(given, &input.name),
    })
}

/// More backticks than any row of them in a text.
fn fence(text: &str) -> String {
    let longest = text.split(|c| c != '`').map(str::len).max().unwrap_or(0);
    "`".repeat(longest.max(2) + 1)
}

/// What the experts are, what they cost, and how to use them.
fn write_experts(card: &mut String, report: &Report, experts: &ExpertsReport) -> std::fmt::Result {
    let served = match experts.residual_base.as_str() {
        "pretrained" => "the base (whose weights the routed layers of this model keep)",
        _ => "this model",
    };
    writeln!(
        card,
        "\n## Low-rank experts\n\n`adapters/<task>` holds a LoRA adapter in PEFT's format for every task: in each routed \
         layer the leading rank-{} part of what the task's expert has and {served} lacks. `router.safetensors` holds the \
         prototypes (mean layer inputs of every task) by which samples are routed to them.\n",
        experts.rank
    )?;
    writeln!(card, "| | |\n|---|---|")?;
    writeln!(card, "| tasks | {} |", line(&report.models.join(", ")))?;
    writeln!(card, "| routed layers | {} |", experts.layers.len())?;
    let share = 100.0 * experts.share_of_model;
    writeln!(card, "| parameters a task | {} ({share:.2}% of the model) |", experts.parameters_per_task)?;
    writeln!(card, "| values of all prototypes | {} |", experts.routing_values)?;
    writeln!(card, "| extra floating-point operations a token | {} |", experts.flops_per_token)?;
    writeln!(card, "| energy restored on the proxies | {} |", percent(&experts.energy_restored()))?;
    let name = report.models.first().map_or("TASK", String::as_str);
    writeln!(
        card,
        "\n```python\nimport transformers\nfrom peft import PeftModel\n\n\
         architecture = transformers.AutoConfig.from_pretrained(\"MERGED\").architectures[0]\n\
         model = getattr(transformers, architecture).from_pretrained(\"MERGED\")\n\
         model = PeftModel.from_pretrained(model, \"MERGED/adapters/{name}\", adapter_name={name:?})\n```\n\n\
         `esmerge route MERGED --data SAMPLES` says which adapter each sample takes."
    )
}

fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

fn method(report: &Report) -> String {
    match &report.preset {
        Some(preset) => format!("{} (preset {preset})", report.merge_method),
        None => report.merge_method.clone(),
    }
}

fn scope(report: &Report) -> &'static str {
    match report.alpha_scope.as_deref() {
        Some("esm") => " (on layers merged by ESM)",
        Some(_) => " (on all tensors)",
        None => "",
    }
}

/// What the layers of a group are called.
pub(super) fn layers(group: &Group) -> String {
    match (&group.name, &group.reason) {
        (Some(name), _) => name.clone(),
        (None, Some(reason)) => reason.clone(),
        (None, None) => "all other tensors".to_owned(),
    }
}

/// What was done with a group.
pub(super) fn treatment(group: &Group) -> String {
    let mut text = group.role.clone();
    if let Some(rank) = group.rank {
        text += &format!(", rank {rank}");
    }
    if group.rank_deficient > 0 {
        text += &format!(", {} rank-deficient", group.rank_deficient);
    }
    text
}

/// `0.61 to 1.42`
pub(super) fn range(range: &Range) -> String {
    match range.summary() {
        Some([min, _, max]) if min == max => format!("{min:.2}"),
        Some([min, _, max]) => format!("{min:.2} to {max:.2}"),
        None => String::new(),
    }
}

/// `93.0 to 99.8%`
pub(super) fn percent(range: &Range) -> String {
    let text = |[min, _, max]: [f64; 3]| match 1000.0 * (max - min) {
        spread if spread < 1.0 => format!("{:.1}%", 100.0 * max),
        _ => format!("{:.1} to {:.1}%", 100.0 * min, 100.0 * max),
    };
    range.summary().map(text).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::super::Input;
    use super::*;

    #[test]
    fn names_cannot_break_the_tables_or_the_fence() {
        let evil = "a | b\n## Injected".to_owned();
        let report = Report { models: vec![evil.clone()], base_model: evil, ..Report::default() };
        let card = model_card(&report, "a: b # ```\n# ````\n");
        assert!(!card.contains("\n## Injected"), "{card}");
        assert!(card.contains(r"| experts | a \| b ## Injected |"), "{card}");
        assert!(card.contains("\n`````yaml\n") && card.ends_with("\n`````\n"), "{card}");
    }

    #[test]
    fn models_of_the_hub_are_named_as_there_and_no_path_is_told() {
        let input = |name: &str, hub: &str| Input {
            name: name.to_owned(),
            hub: Some(hub.to_owned()),
            given: format!("/home/me/{name}"),
            weight: Some(0.5),
            ..Input::default()
        };
        let report = Report {
            base_model: "org/base".to_owned(),
            models: vec!["cars".to_owned()],
            inputs: vec![input("base", "org/base"), input("cars", "org/cars")],
            library_name: Some("transformers"),
            warnings: vec!["/home/me/cars/x is odd".to_owned()],
            ..Report::default()
        };
        let card = model_card(&report, "");
        assert!(
            card.starts_with(
                "---\nbase_model:\n- \"org/base\"\n- \"org/cars\"\nlibrary_name: transformers\n"
            ),
            "{card}"
        );
        assert!(card.contains("| experts | cars (org/cars, weight 0.5) |"), "{card}");
        assert!(card.contains("- cars/x is odd") && !card.contains("/home"), "{card}");
    }
}
