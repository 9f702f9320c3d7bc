//! Tables that line up, and numbers as people say them.

use std::io::{self, Write};

/// Columns are as wide as their widest cell; two spaces between.
pub(super) struct Table {
    columns: Vec<Column>,
    rows: Vec<Vec<String>>,
}

#[derive(Clone, Copy)]
pub(super) enum Column {
    Left(&'static str),
    /// For numbers.
    Right(&'static str),
}

impl Table {
    pub(super) fn new(columns: impl Into<Vec<Column>>) -> Self {
        Self { columns: columns.into(), rows: Vec::new() }
    }

    pub(super) fn row<const N: usize>(&mut self, cells: [String; N]) {
        debug_assert_eq!(N, self.columns.len(), "as many cells as columns");
        self.rows.push(cells.into());
    }

    /// Each line starts with `indent` spaces.
    pub(super) fn write(&self, out: &mut impl Write, indent: usize) -> io::Result<()> {
        let head: Vec<String> = self.columns.iter().map(|column| column.title().to_owned()).collect();
        let lines = || std::iter::once(&head).chain(&self.rows);
        let widths: Vec<usize> =
            (0..head.len()).map(|i| lines().map(|line| width(&line[i])).max().unwrap_or(0)).collect();
        for line in lines() {
            let cells = line.iter().zip(&self.columns).zip(&widths).map(|((cell, column), width)| match column {
                Column::Left(_) => format!("{cell:<width$}"),
                Column::Right(_) => format!("{cell:>width$}"),
            });
            let text = cells.collect::<Vec<_>>().join("  ");
            writeln!(out, "{:indent$}{}", "", text.trim_end())?;
        }
        Ok(())
    }
}

impl Column {
    const fn title(self) -> &'static str {
        match self {
            Self::Left(title) | Self::Right(title) => title,
        }
    }
}

fn width(cell: &str) -> usize {
    cell.chars().count()
}

/// `999 B`, `1.5 MB`: powers of 1000, as disks and networks count.
pub(super) fn bytes(n: u64) -> String {
    scaled(n as f64, "B")
}

/// `8.4 Mbit/s`
pub(super) fn bit_rate(bytes_per_second: f64) -> String {
    scaled(bytes_per_second * 8.0, "bit/s")
}

fn scaled(n: f64, unit: &str) -> String {
    const PREFIXES: [&str; 6] = ["k", "M", "G", "T", "P", "E"];
    // 999.95 would print as 1000.0.
    let mut value = n;
    let mut prefix = "";
    for next in PREFIXES {
        if value < 999.5 {
            break;
        }
        value /= 1000.0;
        prefix = next;
    }
    if prefix.is_empty() || value >= 99.95 {
        return format!("{value:.0} {prefix}{unit}");
    }
    format!("{value:.1} {prefix}{unit}")
}

/// `12,345`
pub(super) fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `0.4s`, `12s`, `3m 5s`, `7h 2m`, `9d 4h`
pub(super) fn age(seconds: f64) -> String {
    if seconds < 9.95 {
        return format!("{:.1}s", seconds.max(0.0));
    }
    let whole = seconds.round() as u64;
    let (minutes, hours, days) = (whole / 60, whole / 3_600, whole / 86_400);
    match whole {
        0..60 => format!("{whole}s"),
        60..3_600 => format!("{minutes}m {}s", whole % 60),
        3_600..86_400 => format!("{hours}h {}m", minutes % 60),
        86_400.. => format!("{days}d {}h", hours % 24),
    }
}

/// `97.3 %`
pub(super) fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}

/// `n thing` or `n things`
pub(super) fn plural(n: u64, thing: &str) -> String {
    format!("{} {thing}{}", count(n), if n == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_as_people_say_them() {
        let all = [0, 999, 1_000, 1_500, 99_949, 99_951, 999_499, 999_500, 1_234_567_890, u64::MAX].map(bytes);
        let expected =
            ["0 B", "999 B", "1.0 kB", "1.5 kB", "99.9 kB", "100 kB", "999 kB", "1.0 MB", "1.2 GB", "18.4 EB"];
        assert_eq!(all, expected);
        assert_eq!(bit_rate(1_050_000.0), "8.4 Mbit/s");
        assert_eq!([0, 999, 1_000, 1_234_567].map(count), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!(percent(0.9731), "97.3 %");
    }

    #[test]
    fn ages_name_their_two_largest_units() {
        let all = [0.04, 9.96, 59.4, 59.6, 185.0, 25_320.0, 792_000.0].map(age);
        assert_eq!(all, ["0.0s", "10s", "59s", "1m 0s", "3m 5s", "7h 2m", "9d 4h"]);
    }

    #[test]
    fn columns_line_up_and_lines_have_no_trailing_space() {
        let mut table = Table::new([Column::Left("NAME"), Column::Right("N"), Column::Left("NOTE")]);
        table.row(["a".into(), "5".into(), "ä".into()]);
        table.row(["longer".into(), "1,000".into(), String::new()]);
        let mut text = Vec::new();
        table.write(&mut text, 2).expect("a Vec takes all");
        let expected = "  NAME        N  NOTE\n  a           5  ä\n  longer  1,000\n";
        assert_eq!(String::from_utf8(text).expect("UTF-8"), expected);
    }
}
