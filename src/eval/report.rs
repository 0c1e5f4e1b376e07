//! What an evaluation found.

use super::accuracy::{Difference, Z95};
use super::{Accuracy, Earlier};
use crate::data::Error;
use crate::routing;
use serde::Serialize;

/// The whole.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// The model.
    pub model: String,
    /// The device.
    pub device: String,
    /// Which part of the tasks.
    pub split: String,
    /// Task by task.
    pub tasks: Vec<TaskReport>,
    /// Mean accuracy over the tasks.
    pub average: f64,
    /// Mean of accuracy over expert's accuracy, where experts were given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub normalized_average: Option<f64>,
    /// Mean consistency, where there is something to compare with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cka_average: Option<f64>,
    /// Half of the 95% interval of the average, the tasks' errors independent.
    pub average_margin: f64,
    /// Where samples were routed to, for a model of ESM++.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub routing: Option<routing::Report>,
    /// The model of an earlier report that this one is compared with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compared_with: Option<String>,
    /// Mean gain over it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub difference: Option<Difference>,
}

/// One task.
#[derive(Clone, Debug, Serialize)]
pub struct TaskReport {
    /// Its name.
    pub task: String,
    /// Of the model.
    pub accuracy: Accuracy,
    /// Share of right answers.
    pub value: f64,
    /// Its 95% interval.
    pub interval: (f64, f64),
    /// Of the task's own expert.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expert: Option<f64>,
    /// `value / expert`
    #[serde(skip_serializing_if = "Option::is_none")]
    pub normalized: Option<f64>,
    /// One character a sample: 1 where the answer is right, else 0.
    pub answers: String,
    /// Gain over an earlier report, sample by sample.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub difference: Option<Difference>,
    /// Centred linear CKA of the features with the expert's, or those of the model compared with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cka: Option<f64>,
}

impl TaskReport {
    /// From answers that are right or not.
    pub fn new(task: &str, right: &[bool]) -> TaskReport {
        let accuracy = Accuracy::of(right);
        let (value, interval) = (accuracy.value(), accuracy.interval());
        TaskReport {
            task: task.to_owned(),
            accuracy,
            value,
            interval,
            expert: None,
            normalized: None,
            answers: right.iter().map(|&r| if r { '1' } else { '0' }).collect(),
            difference: None,
            cka: None,
        }
    }

    /// Sets what the expert reaches.
    pub fn with_expert(mut self, expert: Accuracy) -> TaskReport {
        self.expert = Some(expert.value());
        self.normalized = (expert.correct > 0).then(|| self.value / expert.value());
        self
    }
}

impl Report {
    /// Compares with an earlier report on the same samples.
    pub fn compare(mut self, earlier: &Earlier) -> Result<Report, Error> {
        for task in &mut self.tasks {
            let before = earlier.answers(&task.task, &self.split, task.accuracy.samples)?;
            let now: Vec<bool> = task.answers.bytes().map(|b| b == b'1').collect();
            task.difference = Some(Difference::paired(&now, &before));
        }
        let differences: Vec<Difference> = self.tasks.iter().filter_map(|t| t.difference).collect();
        self.difference = Some(Difference::mean(&differences));
        self.compared_with = Some(earlier.model.clone());
        Ok(self)
    }

    /// Forms the averages.
    pub fn with_averages(mut self) -> Report {
        let n = self.tasks.len().max(1) as f64;
        self.average = self.tasks.iter().map(|t| t.value).sum::<f64>() / n;
        let all = |f: fn(&TaskReport) -> Option<f64>| -> Option<f64> {
            let values: Option<Vec<f64>> = self.tasks.iter().map(f).collect();
            values.filter(|v| !v.is_empty()).map(|v| v.iter().sum::<f64>() / v.len() as f64)
        };
        (self.normalized_average, self.cka_average) = (all(|t| t.normalized), all(|t| t.cka));
        let variance = |t: &TaskReport| t.value * (1.0 - t.value) / t.accuracy.samples.max(1) as f64;
        self.average_margin = Z95 * self.tasks.iter().map(variance).sum::<f64>().sqrt() / n;
        self
    }
}

/// The report as a table, in percent, on lines of at most `width` columns.
#[cfg(feature = "cli")]
pub fn table(report: &Report, width: usize) -> String {
    use crate::report::{Column, Grid};
    let percent = |v: f64| format!("{:.1}", 100.0 * v);
    let optional = |v: Option<f64>| v.map(percent).unwrap_or_default();
    let cka = |v: Option<f64>| v.map(|v| format!("{v:.4}")).unwrap_or_default();
    let difference = |d: Option<Difference>| {
        d.map(|d| format!("{:+.1} ± {:.1}", 100.0 * d.value, 100.0 * d.margin)).unwrap_or_default()
    };
    let mut grid = Grid::new([
        Column::text("task"),
        Column::number("samples"),
        Column::number("accuracy"),
        Column::text("95% interval"),
        Column::number("difference")
            .meaning("the gain over the earlier report, and half of its 95% interval"),
        Column::number("expert").meaning("the accuracy of the task's own expert"),
        Column::number("normalised").meaning("accuracy over the expert's"),
        Column::number("CKA")
            .meaning("how alike the features are to those compared with; 1 is the same but for a rotation"),
    ]);
    for task in &report.tasks {
        grid.row(vec![
            task.task.clone(),
            task.accuracy.samples.to_string(),
            percent(task.value),
            format!("{} to {}", percent(task.interval.0), percent(task.interval.1)),
            difference(task.difference),
            optional(task.expert),
            optional(task.normalized),
            cka(task.cka),
        ]);
    }
    if report.tasks.len() > 1 {
        let experts: Option<Vec<f64>> = report.tasks.iter().map(|t| t.expert).collect();
        let experts = experts.map(|e| e.iter().sum::<f64>() / e.len() as f64);
        let (low, high) = (report.average - report.average_margin, report.average + report.average_margin);
        grid.row(vec![
            "average".to_owned(),
            String::new(),
            percent(report.average),
            format!("{} to {}", percent(low), percent(high)),
            difference(report.difference),
            optional(experts),
            optional(report.normalized_average),
            cka(report.cka_average),
        ]);
    }
    grid.render(width)
}
