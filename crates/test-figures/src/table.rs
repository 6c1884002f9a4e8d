use std::fmt;
use std::time::Duration;

use crate::Samples;

const NAME_WIDTH: usize = 44;
const CELL_WIDTH: usize = 13;

/// Figures that belong together, with what they are compared to.
#[derive(Debug)]
pub struct Table {
    title: &'static str,
    columns: Vec<&'static str>,
    rows: Vec<Row>,
}

#[derive(Debug)]
enum Row {
    Cells(String, Vec<String>),
    Note(String),
}

impl Table {
    /// A table with these columns after the names.
    #[must_use]
    pub fn new(title: &'static str, columns: &[&'static str]) -> Self {
        Self {
            title,
            columns: columns.to_vec(),
            rows: Vec::new(),
        }
    }

    /// A line of figures. What has no column of its own is a remark behind it.
    pub fn row(&mut self, name: impl Into<String>, cells: impl IntoIterator<Item = String>) {
        self.rows.push(Row::Cells(name.into(), cells.into_iter().collect()));
    }

    /// A line with median, 99th percentile and rate in the first columns.
    pub fn samples(&mut self, name: &str, samples: &Samples, more: impl IntoIterator<Item = String>) {
        let own = [time(samples.p50()), time(samples.p99()), rate(samples.per_second())];
        self.row(name, own.into_iter().chain(more));
    }

    /// A line of text.
    pub fn note(&mut self, text: impl Into<String>) {
        self.rows.push(Row::Note(text.into()));
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\n{:<NAME_WIDTH$}", self.title)?;
        for column in &self.columns {
            write!(f, "{column:>CELL_WIDTH$}")?;
        }
        for row in &self.rows {
            match row {
                Row::Cells(name, cells) => self.write_cells(f, name, cells)?,
                Row::Note(text) => write!(f, "\n  {text}")?,
            }
        }
        writeln!(f)
    }
}

impl Table {
    fn write_cells(&self, f: &mut fmt::Formatter<'_>, name: &str, cells: &[String]) -> fmt::Result {
        let (figures, remarks) = cells.split_at(cells.len().min(self.columns.len()));
        write!(f, "\n{:<NAME_WIDTH$}", format!("  {name}"))?;
        for figure in figures {
            write!(f, "{figure:>CELL_WIDTH$}")?;
        }
        for remark in remarks {
            write!(f, "  {remark}")?;
        }
        Ok(())
    }
}

/// A time for people: three digits and a unit.
#[must_use]
pub fn time(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    if seconds < 0.001 {
        format!("{:.0} us", seconds * 1e6)
    } else if seconds < 0.1 {
        format!("{:.2} ms", seconds * 1e3)
    } else if seconds < 1.0 {
        format!("{:.0} ms", seconds * 1e3)
    } else {
        format!("{seconds:.1} s")
    }
}

/// How many per second, for people.
#[must_use]
pub fn rate(per_second: f64) -> String {
    if per_second < 100.0 {
        format!("{per_second:.1}")
    } else {
        format!("{per_second:.0}")
    }
}

/// An amount of bytes, for people.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "no file has 2^53 bytes")]
pub fn mebibytes(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_a_unit_that_fits() {
        let texts = [0.000_042, 0.001_234, 0.123, 75.04].map(|seconds| time(Duration::from_secs_f64(seconds)));
        assert_eq!(texts, ["42 us", "1.23 ms", "123 ms", "75.0 s"]);
    }

    #[test]
    fn remarks_follow_the_columns() {
        let mut table = Table::new("Memory", &["now"]);
        table.row("all", ["1.0 MiB".to_owned(), "aim: less".to_owned()]);
        table.note("said the kernel");
        let lines: Vec<_> = table.to_string().lines().map(str::to_owned).collect();
        assert!(lines[1].ends_with("          now"));
        assert!(lines[2].starts_with("  all ") && lines[2].ends_with("      1.0 MiB  aim: less"));
        assert_eq!(lines[3], "  said the kernel");
    }
}
