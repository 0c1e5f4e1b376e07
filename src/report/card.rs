use super::{ExpertsReport, Group, Range, Report};
use std::fmt::Write;

/// The `README.md` of a merged model.
pub fn model_card(report: &Report, recipe: &str) -> String {
    let mut card = String::new();
    write_card(&mut card, report, recipe).unwrap_or_default(); // writing to a String cannot fail
    card
}

fn write_card(card: &mut String, report: &Report, recipe: &str) -> std::fmt::Result {
    writeln!(card, "---\nbase_model: {}\ntags:\n- merge\n- esmerge\n---\n", quoted(&report.base_model))?;
    writeln!(card, "# Merge of {} by {}\n", report.base_model, method(report))?;
    writeln!(
        card,
        "This model was merged from {} fine-tuned models with [esmerge](https://crates.io/crates/esmerge) {}.\n",
        report.models.len(),
        report.esmerge
    )?;
    writeln!(card, "| | |\n|---|---|")?;
    writeln!(card, "| base | {} |", report.base_model)?;
    writeln!(card, "| experts | {} |", report.models.join(", "))?;
    writeln!(card, "| method | {} |", method(report))?;
    writeln!(card, "| alpha | {}{} |", report.alpha, scope(report))?;
    if report.calibrated == Some(false) {
        writeln!(card, "| calibration | none (data-free form) |")?;
    }
    if let (Some(accuracy), Some(seed)) = (&report.accuracy, report.seed) {
        writeln!(card, "| accuracy, seed | {accuracy}, {seed} |")?;
    }
    for change in &report.overrides {
        writeln!(card, "| changed on the command line | {change} |")?;
    }
    writeln!(
        card,
        "\n## What was done\n\n| layers | treatment | tensors | energy kept | beta |\n|---|---|---|---|---|"
    )?;
    for group in &report.groups {
        writeln!(
            card,
            "| {} | {} | {} | {} | {} |",
            layers(group),
            treatment(group),
            group.tensors,
            percent(&group.energy_retention),
            range(&group.beta)
        )?;
    }
    if let Some(account) = &report.account {
        writeln!(card, "\n## Every tensor\n\n```text\n{account}\n```")?;
    }
    if let Some(experts) = &report.experts {
        write_experts(card, report, experts)?;
    }
    if !report.warnings.is_empty() {
        writeln!(card, "\n## Warnings\n")?;
        report.warnings.iter().try_for_each(|warning| writeln!(card, "- {warning}"))?;
    }
    writeln!(card, "\n## Recipe\n\n```yaml\n{}\n```", recipe.trim_end())
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
    writeln!(card, "| tasks | {} |", report.models.join(", "))?;
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
