//! Tables for people, JSON for programs.

use std::fmt::Write as _;
use std::path::Path;

use serde_json::{Map, Value, json};

use crate::args::Args;
use crate::contenders::OURS;
use crate::context::Context;
use crate::machine::{Machine, versions};
use crate::measures::{Measure, ahead};
use crate::results::{Row, Unit, median};
use crate::scale::Scale;
use crate::{Result, shell};

/// All tables, as Markdown.
pub fn tables(context: &Context, measures: &[Measure]) -> String {
    let mut out = String::new();
    let _ = writeln!(out, "\n{}\n", Machine::here(context.work.path()).line());
    let rows = context.results.rows();
    for group in rows.chunk_by(|a, b| workload(a) == workload(b)) {
        out.push_str(&table(group, context.scale));
        out.push('\n');
    }
    out.push_str(&measures_table(measures));
    for (row, rival) in ahead(&context.results) {
        let _ = writeln!(out, "- {rival} is ahead: {}", text(row, context.scale));
    }
    for note in &context.notes {
        let _ = writeln!(out, "- failed: {note}");
    }
    out
}

/// Writes everything that was measured.
pub fn write_json(path: &Path, args: &Args, context: &Context, measures: &[Measure]) -> Result<()> {
    let error = |error: std::io::Error| format!("{}: {error}", path.display());
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(error)?;
    }
    let text = format!("{:#}\n", json(args, context, measures));
    std::fs::write(path, text).map_err(error)?;
    eprintln!("compare: wrote {}", path.display());
    Ok(())
}

/// Rows of one workload, with a column for each contender and its ratio to ours in brackets.
fn table(rows: &[&Row], scale: Scale) -> String {
    let mut names: Vec<&str> = Vec::new();
    for (name, _) in rows.iter().flat_map(|row| &row.cells) {
        if !names.contains(&name.as_str()) {
            names.push(name);
        }
    }
    names.sort_by_key(|name| column(name));
    let mut out = format!("| | {} |\n|---|{}\n", names.join(" | "), "--:|".repeat(names.len()));
    for row in rows {
        let _ = write!(out, "| {} |", text(row, scale));
        for name in &names {
            let _ = write!(out, " {} |", cell(row, name));
        }
        out.push('\n');
    }
    out
}

/// Ours first, then what it is measured against.
fn column(name: &str) -> usize {
    let order = [
        OURS,
        "ours-user",
        "cache file",
        "local file",
        "HEAD + GET",
        shell::CURL,
        shell::CURL_DIR,
        "aws",
        "aws+dir",
    ];
    order.iter().position(|known| *known == name).unwrap_or(order.len())
}

fn cell(row: &Row, name: &str) -> String {
    let Some(value) = row.median(name) else { return "–".to_owned() };
    let shown = figure(value, row.kind().1);
    match row.median(OURS) {
        Some(ours) if name != OURS && ours > 0.0 => format!("{shown} ({:.2})", value / ours),
        _ => shown,
    }
}

fn figure(value: f64, unit: Unit) -> String {
    match unit {
        Unit::Seconds if value < 0.1 => format!("{:.1} ms", value * 1000.0),
        Unit::Seconds => format!("{value:.2} s"),
        Unit::PerSecond => format!("{value:.0}"),
        Unit::Times => format!("{value:.3}"),
        Unit::Requests => format!("{value}"),
        Unit::MiB => format!("{value:.0} MiB"),
    }
}

/// What a row is about, sizes filled in.
fn text(row: &Row, scale: Scale) -> String {
    let (files, each) = scale.at_once;
    let sizes = [
        ("{large}", bytes(scale.large)),
        ("{tarball}", format!("{} MB", scale.tarball / 1_000_000)),
        ("{names}", scale.names.to_string()),
        ("{missing}", scale.missing.to_string()),
        ("{shared}", bytes(scale.shared)),
        ("{huge}", bytes(scale.huge)),
        ("{at_once}", format!("{files} × {}", bytes(each))),
        ("{many}", format!("{} names", scale.many_names)),
    ];
    let text = sizes.iter().fold(row.kind().0.to_owned(), |text, (name, size)| text.replace(name, size));
    row.link.map_or(text.clone(), |link| format!("{text}, {}", link.name()))
}

fn bytes(bytes: u64) -> String {
    if bytes >= 1 << 30 { format!("{} GiB", bytes >> 30) } else { format!("{} MiB", bytes >> 20) }
}

fn workload(row: &Row) -> &str {
    row.id.split('.').next().unwrap_or_default()
}

fn measures_table(measures: &[Measure]) -> String {
    let mut out = "| measure | must reach | is | |\n|---|--:|--:|---|\n".to_owned();
    for measure in measures {
        let met = if measure.is_met() { "met" } else { "**NOT met**" };
        let _ = writeln!(out, "| {} | {} | {:.3} | {met} |", measure.what, measure.target, measure.value);
    }
    out
}

fn json(args: &Args, context: &Context, measures: &[Measure]) -> Value {
    let command: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let contenders = context.file_systems.iter().map(|fs| (fs.name, fs.version.clone()));
    let versions: Map<String, Value> =
        contenders.chain(versions()).map(|(name, version)| (name.to_owned(), version.into())).collect();
    let measures: Vec<Value> = measures
        .iter()
        .map(|measure| {
            json!({
                "what": measure.what, "target": measure.target.to_string(),
                "value": measure.value, "met": measure.is_met(),
            })
        })
        .collect();
    json!({
        "command": format!("cargo bench --bench compare -- {}", command.join(" ")).trim_end(),
        "date": humantime::format_rfc3339_seconds(context.began).to_string(),
        "machine": Machine::here(context.work.path()).json(),
        "versions": versions,
        "server": format!("{:?}", context.server),
        "quick": args.quick,
        "runs": context.runs,
        "rows": context.results.rows().into_iter().map(|row| row_json(row, context.scale)).collect::<Vec<_>>(),
        "measures": measures,
        "failed": context.notes,
    })
}

fn row_json(row: &Row, scale: Scale) -> Value {
    let cells: Map<String, Value> = row
        .cells
        .iter()
        .map(|(name, samples)| (name.clone(), json!({ "median": median(samples), "samples": samples })))
        .collect();
    json!({
        "id": row.id, "text": text(row, scale), "link": row.link.map(|link| link.name()),
        "unit": row.kind().1.name(), "contenders": cells,
    })
}
