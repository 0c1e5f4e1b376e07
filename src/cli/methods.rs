use super::failure::Failure;
use super::{args, output, terminal};
use crate::method::table::{Base, Calibration, Description, Kind, Strength};
use crate::method::{methods, table};
use crate::report::{Column, Grid, wrapped};

/// `esmerge methods`
pub(super) fn run(args: &args::Methods) -> Result<(), Failure> {
    let Some(name) = &args.name else {
        output::print(&all(terminal::width()));
        return Ok(());
    };
    let Some(method) = table::find(name) else {
        let known: Vec<&str> = table::names().collect();
        return Err(Failure::usage(&format!("`{name}` is no method; there are {}", known.join(", "))));
    };
    output::print(&explained(method, terminal::width()));
    Ok(())
}

fn all(width: usize) -> String {
    let mut grid = Grid::new([Column::text("method"), Column::text("what it does")]);
    methods().for_each(|method| grid.row(vec![method.name.to_owned(), method.line.to_owned()]));
    let more = "`esmerge methods NAME` explains one; every method takes `alpha`, a number or a search, as its strength";
    format!("{}\n\n{}", grid.render(width), wrapped(more, width))
}

/// One method, with everything the table says of it.
fn explained(method: &Description, width: usize) -> String {
    let mut text = format!("{}: {}\n\n", method.name, method.line);
    text = wrapped(text.trim_end(), width) + "\n\n";
    for line in method.formula.lines() {
        text += &format!("{}\n", wrapped(line.trim(), width));
    }
    text += &format!(
        "\n{}\n{}\n",
        wrapped(&format!("source: {}", method.source), width),
        wrapped(&needs(method), width)
    );
    let mut grid = Grid::new([
        Column::text("parameter"),
        Column::text("values"),
        Column::text("default"),
        Column::text("meaning"),
    ]);
    for parameter in method.parameters {
        let of_models = if parameter.of_models { "; each model may have its own" } else { "" };
        grid.row(vec![
            parameter.name.to_owned(),
            parameter.form.to_string(),
            parameter.default.to_string(),
            format!("{}{of_models}", parameter.help),
        ]);
    }
    if !method.parameters.is_empty() {
        text += &format!("\n{}\n", grid.render(width));
    }
    text += &format!("\n{}", example(method));
    text
}

fn needs(method: &Description) -> String {
    let models = match method.models {
        (1, usize::MAX) => "any number of models".to_owned(),
        (1, 1) => "one model".to_owned(),
        (least, most) if least == most => format!("{least} models"),
        (least, _) => format!("{least} models or more"),
    };
    let base = match method.base {
        Base::Origin { .. } => "the base they were fine-tuned from",
        Base::Optional => "a base if differences to it are to be merged",
        Base::Member => "no base",
    };
    let calibration = match method.calibration {
        Calibration::Unused => "",
        Calibration::OfExperts => ", and the inputs of layers (`calibration`)",
        Calibration::OfMerged => {
            ", and samples that models are run on meanwhile (`calibration: {data: PATH}`), of an architecture that `capture` knows"
        }
    };
    let strength = match method.strength {
        Strength::Required => "`alpha` is required, and can be searched",
        Strength::Alpha => {
            "the merged difference is multiplied by `alpha`, 1 by default, which can be searched"
        }
        Strength::Lambda => {
            "the merged difference is multiplied by `lambda`, or `alpha`, 1 by default, which can be searched"
        }
        Strength::OnlyLambda => "the merged difference is multiplied by `lambda`, 1 by default",
    };
    let cost = match method.kind {
        Kind::Elementwise { passes: 0 } => "models are read once, a part of a tensor at a time".to_owned(),
        Kind::Elementwise { passes } => {
            format!(
                "a tensor that is too large to be kept (some 32 million values of all models) is read up to {} times",
                passes + 1
            )
        }
        Kind::Spectral | Kind::Esm => {
            "matrices of layers are decomposed, one layer of all models in memory".to_owned()
        }
    };
    format!("needs {models} and {base}{calibration}; {strength}; {cost}")
}

/// A recipe.
fn example(method: &Description) -> String {
    let mut text = format!("merge_method: {}\n", method.name);
    if matches!(method.base, Base::Origin { .. }) {
        text += "base_model: models/base\n";
    }
    text += "models:\n";
    for name in ["cars", "mnist"].into_iter().take(method.models.1) {
        text += &format!("  - model: models/{name}\n");
        match method.calibration {
            Calibration::Unused => {}
            Calibration::OfExperts => text += &format!("    calibration: calib/{name}.safetensors\n"),
            Calibration::OfMerged => text += &format!("    calibration: {{data: photos/{name}}}\n"),
        }
    }
    text += "parameters:\n";
    method.example.lines().for_each(|line| text += &format!("  {line}\n"));
    text.trim_end().to_owned()
}
