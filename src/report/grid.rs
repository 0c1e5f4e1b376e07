//! Tables for the terminal: as wide as it is, and no wider.

use comfy_table::{CellAlignment, ColumnConstraint, ContentArrangement, Table, Width, presets};

/// Columns of text where nothing else is known: what standard terminals have, and what fits a file.
pub const WIDTH: usize = 80;

/// A column of a [`Grid`].
#[derive(Clone, Debug)]
pub struct Column {
    head: String,
    right: bool,
    note: &'static str,
}

impl Column {
    /// Of text.
    pub fn text(head: impl Into<String>) -> Column {
        Column { head: head.into(), right: false, note: "" }
    }

    /// Of numbers, which line up on the right.
    pub fn number(head: impl Into<String>) -> Column {
        Column { right: true, ..Column::text(head) }
    }

    /// What it means, said below the table.
    pub fn meaning(self, note: &'static str) -> Column {
        Column { note, ..self }
    }
}

/// A table, the first column of which names its rows.
#[derive(Clone, Debug)]
pub struct Grid {
    columns: Vec<Column>,
    rows: Vec<Vec<String>>,
}

impl Grid {
    /// Without rows.
    pub fn new(columns: impl IntoIterator<Item = Column>) -> Grid {
        Grid { columns: columns.into_iter().collect(), rows: Vec::new() }
    }

    /// Adds a row, a cell for every column.
    pub fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    /// Lines of at most `width` columns. Columns without content are left out; those that say the same in every row are said in
    /// a line where there is no room for them; and what still does not fit follows as further tables of the same rows.
    pub fn render(mut self, width: usize) -> String {
        self.retain(|cells| cells.iter().any(|cell| !cell.is_empty()));
        let same = if self.width() > width { self.take_equal_columns() } else { Vec::new() };
        let meanings: Vec<String> = self.columns.iter().filter_map(Column::line).collect();
        let mut blocks: Vec<String> =
            self.blocks(width).iter().map(|block| self.block(block, width)).collect();
        if !same.is_empty() {
            blocks.push(wrapped(&format!("in all rows: {}", same.join(", ")), width));
        }
        if !meanings.is_empty() {
            blocks.push(meanings.iter().map(|line| wrapped(line, width)).collect::<Vec<_>>().join("\n"));
        }
        blocks.join("\n\n")
    }

    fn cells(&self, column: usize) -> impl Iterator<Item = &String> {
        self.rows.iter().filter_map(move |row| row.get(column))
    }

    /// Keeps the first column, and those whose cells are as wanted.
    fn retain(&mut self, wanted: impl Fn(&[&String]) -> bool) {
        let kept: Vec<bool> =
            (0..self.columns.len()).map(|j| j == 0 || wanted(&self.cells(j).collect::<Vec<_>>())).collect();
        let keep = |j: &mut usize| {
            *j += 1;
            kept.get(*j - 1).copied().unwrap_or(false)
        };
        let mut j = 0;
        self.columns.retain(|_| keep(&mut j));
        for row in &mut self.rows {
            let mut j = 0;
            row.retain(|_| keep(&mut j));
        }
    }

    /// Takes columns out that say the same in every one of several rows; gives what they say.
    fn take_equal_columns(&mut self) -> Vec<String> {
        let equal = |cells: &[&String]| cells.len() > 1 && cells.iter().all(|cell| *cell == cells[0]);
        let said = (1..self.columns.len()).filter_map(|j| {
            let cells: Vec<&String> = self.cells(j).collect();
            equal(&cells).then(|| format!("{} {}", self.columns[j].head, cells[0]))
        });
        let said = said.collect();
        self.retain(|cells| !equal(cells));
        said
    }

    /// Columns that a column takes, with the space on its left and right.
    fn column_width(&self, column: usize) -> usize {
        let cells = self.cells(column).map(|cell| cell.chars().count()).max().unwrap_or(0);
        cells.max(self.columns[column].head.chars().count()) + 2
    }

    fn width(&self) -> usize {
        (0..self.columns.len()).map(|j| self.column_width(j)).sum()
    }

    /// The most that names take: two fifths, so that there is room for what they name.
    fn name_width(&self, width: usize) -> usize {
        let least = if self.width() > width { (2 * width / 5).max(16) } else { width };
        self.column_width(0).min(least)
    }

    /// Columns that fit side by side, after the first.
    fn blocks(&self, width: usize) -> Vec<Vec<usize>> {
        let room = width.saturating_sub(self.name_width(width));
        let mut blocks: Vec<Vec<usize>> = vec![Vec::new()];
        let mut taken = 0;
        for j in 1..self.columns.len() {
            let own = self.column_width(j);
            if taken + own > room && taken > 0 {
                blocks.push(Vec::new());
                taken = 0;
            }
            taken += own;
            if let Some(last) = blocks.last_mut() {
                last.push(j);
            }
        }
        blocks
    }

    fn block(&self, others: &[usize], width: usize) -> String {
        let columns = || std::iter::once(0).chain(others.iter().copied());
        let mut table = Table::new();
        table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
        table.set_width(width.min(u16::MAX.into()) as u16);
        table.set_header(columns().filter_map(|j| self.columns.get(j)).map(|column| column.head.clone()));
        let names = self.name_width(width);
        for row in &self.rows {
            let mut cells: Vec<String> = columns().filter_map(|j| row.get(j).cloned()).collect();
            if let Some(name) = cells.first_mut() {
                *name = broken_at_dots(name, names.saturating_sub(2));
            }
            table.add_row(cells);
        }
        for (place, j) in columns().enumerate() {
            let Some(column) = table.column_mut(place) else { continue };
            if self.columns[j].right {
                column.set_cell_alignment(CellAlignment::Right);
            }
            if self.column_width(j) + names <= width && j > 0 {
                column.set_constraint(ColumnConstraint::ContentWidth);
            } else if j == 0 {
                column.set_constraint(ColumnConstraint::UpperBoundary(Width::Fixed(names as u16)));
            }
        }
        table.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>().join("\n")
    }
}

impl Column {
    /// `head: meaning`
    fn line(&self) -> Option<String> {
        (!self.note.is_empty()).then(|| format!("{}: {}", self.head, self.note))
    }
}

/// A dotted name on several lines, each of at most `width` where its parts allow it.
fn broken_at_dots(name: &str, width: usize) -> String {
    let (mut lines, mut line) = (Vec::new(), String::new());
    for part in name.split_inclusive('.') {
        if !line.is_empty() && line.chars().count() + part.chars().count() > width {
            lines.push(std::mem::take(&mut line));
        }
        line += part;
    }
    lines.push(line);
    lines.join("\n")
}

/// A sentence on lines of at most `width`, those after the first indented; words longer than that stay whole.
pub fn wrapped(text: &str, width: usize) -> String {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            Some(_) => lines.push(format!("  {word}")),
            None => lines.push(word.to_owned()),
        }
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grid(names: [&str; 2], columns: usize) -> Grid {
        let heads = std::iter::once(Column::text("layers"));
        let mut grid = Grid::new(heads.chain((0..columns).map(|j| Column::number(format!("head {j}")))));
        for (i, name) in names.iter().enumerate() {
            let cells = (0..columns).map(|j| format!("{} to {}", i + j, 10 * i + j));
            grid.row(std::iter::once((*name).to_owned()).chain(cells).collect());
        }
        grid
    }

    #[test]
    fn no_line_is_wider_than_the_terminal_and_no_cell_is_lost() {
        let long = "vision_model.embeddings.position_embedding.with.a.name.that.goes.on.weight";
        for width in [40, 80, 200] {
            for columns in [1, 5, 30] {
                let text = grid(["layers.*.mlp.fc1", long], columns).render(width);
                assert!(
                    text.lines().all(|line| line.chars().count() <= width),
                    "{width}, {columns}:\n{text}"
                );
                for j in 0..columns {
                    assert!(
                        text.contains(&format!("head {j}"))
                            && text.contains(&format!("{} to {}", j + 1, 10 + j))
                    );
                }
                let joined: String = text.split_whitespace().collect();
                assert!(width < 80 || columns > 1 || joined.contains("position_embedding."), "{text}");
            }
        }
    }

    #[test]
    fn columns_of_nothing_go_and_equal_ones_are_said_where_there_is_no_room() {
        let mut grid = Grid::new([
            Column::text("layers"),
            Column::text("nothing"),
            Column::number("alpha").meaning("the strength of the merge"),
            Column::number("a head that is rather long"),
        ]);
        for (name, long) in [("first", "1"), ("second", "2")] {
            grid.row(vec![name.into(), String::new(), "0.5".into(), long.into()]);
        }
        let wide = grid.clone().render(80);
        assert!(!wide.contains("nothing") && wide.contains("alpha: the strength of the merge"), "{wide}");
        let narrow = grid.render(38);
        assert!(narrow.contains("in all rows: alpha 0.5"), "{narrow}");
        assert!(narrow.lines().all(|line| line.chars().count() <= 38), "{narrow}");
    }
}
