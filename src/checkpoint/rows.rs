//! Tables with a row a token, for a vocabulary that is not their own: rows of several models' tables, put together as they are read.

use super::{Checkpoint, Error, widen};
use crate::backend::Dtype;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

/// Where a row comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Row {
    /// A row of one of the tables.
    Of {
        /// Which table.
        table: usize,
        /// Which of its rows.
        row: usize,
    },
    /// The mean of rows, each by its table and its place there.
    Mean(Vec<(usize, usize)>),
    /// The mean of all rows before it, for rows of no token.
    Average,
    /// Zeros.
    Zero,
}

/// A tensor with a row a token in one model.
#[derive(Clone, Debug)]
pub struct Table {
    /// The model.
    pub model: Arc<Checkpoint>,
    /// The tensor's name there.
    pub tensor: String,
}

/// A tensor of such rows.
#[derive(Clone, Debug)]
pub(super) struct Rows {
    tables: Vec<Table>,
    rows: Arc<Vec<Row>>,
    /// Values of a row.
    cols: usize,
    /// What its values are written as.
    pub dtype: Dtype,
    average: OnceLock<Vec<f32>>,
}

impl Rows {
    pub fn new(tables: Vec<Table>, rows: Arc<Vec<Row>>, cols: usize, dtype: Dtype) -> Rows {
        Rows { tables, rows, cols: cols.max(1), dtype, average: OnceLock::new() }
    }

    /// Reads the values `range`, and hands them over piece by piece with their places.
    pub fn read(&self, range: Range<usize>, mut take: impl FnMut(usize, &[f32])) -> Result<(), Error> {
        let mut at = range.start;
        while at < range.end {
            let (first, within) = (at / self.cols, at % self.cols);
            let end = range.end.min((first + self.run(first)) * self.cols);
            match self.rows.get(first) {
                Some(&Row::Of { table, row }) => {
                    let from = row * self.cols + within;
                    take(at, &self.values(table, from..from + end - at)?);
                }
                Some(Row::Mean(of)) => take(at, &self.mean(of)?[within..within + end - at]),
                Some(Row::Average) => take(at, &self.average()?[within..within + end - at]),
                Some(Row::Zero) | None => take(at, &vec![0.0; end - at]),
            }
            at = end;
        }
        Ok(())
    }

    /// How many rows from here on lie one after the other in one table; 1 for any other.
    fn run(&self, first: usize) -> usize {
        /// Values at a time, so that they stay in the cache.
        const PIECE: usize = 1 << 16;
        let Some(&Row::Of { table, row }) = self.rows.get(first) else { return 1 };
        let most = (PIECE / self.cols).max(1);
        let follows = |(i, next): &(usize, &Row)| **next == Row::Of { table, row: row + i };
        self.rows[first..].iter().enumerate().take(most).take_while(follows).count().max(1)
    }

    fn values(&self, table: usize, range: Range<usize>) -> Result<Vec<f32>, Error> {
        let Table { model, tensor } = &self.tables[table];
        let extent = model.values(tensor, range)?;
        Ok(widen(extent.dtype().unwrap_or(Dtype::F32), &extent.read()?))
    }

    fn mean(&self, of: &[(usize, usize)]) -> Result<Vec<f32>, Error> {
        let mut sum = vec![0.0; self.cols];
        for &(table, row) in of {
            let values = self.values(table, row * self.cols..(row + 1) * self.cols)?;
            sum.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
        }
        sum.iter_mut().for_each(|value| *value /= of.len().max(1) as f32);
        Ok(sum)
    }

    fn average(&self) -> Result<&[f32], Error> {
        if let Some(average) = self.average.get() {
            return Ok(average);
        }
        let count = self.rows.iter().take_while(|row| **row != Row::Average).count();
        let mut sum = vec![0f64; self.cols];
        self.read_before(count, |at, values| {
            for (i, &value) in values.iter().enumerate() {
                sum[(at + i) % self.cols] += f64::from(value);
            }
        })?;
        let average = sum.into_iter().map(|sum| (sum / count.max(1) as f64) as f32).collect();
        Ok(self.average.get_or_init(|| average))
    }

    /// The rows before `count`, none of which is an average.
    fn read_before(&self, count: usize, take: impl FnMut(usize, &[f32])) -> Result<(), Error> {
        self.read(0..count * self.cols, take)
    }
}
