//! A state as a picture: machines, members, API servers, who holds what, and what happened last.
//! `screen` shows it, `top --once` prints it as plain text; it fits 80 × 24 and uses more room for more events.
//! Pure: the same state and size give the same picture.

use super::state::{Heard, Node, Standing, State};
use ratatui::buffer::Buffer;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Cell, Paragraph, Row, Table, Widget};

const HEADER: [&str; 9] = ["node", "machine", "etcd", "term", "index", "lag", "MiB", "API", "units"];
const WIDTHS: [u16; 9] = [13, 8, 9, 5, 8, 5, 5, 8, 11];

/// Lines that a picture needs which shows every node.
pub fn height_of_all(state: &State) -> u16 {
    // Heading, the table's own, holders, what is in force.
    u16::try_from(state.nodes.len()).unwrap_or(u16::MAX).saturating_add(8)
}

/// The picture of a state, so many columns wide and so many lines high. Where not all nodes fit, those that are not well come first, and
/// a last row says how many are left out and how they are.
pub fn frame(state: &State, width: u16, height: u16) -> Buffer {
    let area = Rect::new(0, 0, width, height);
    let mut buffer = Buffer::empty(area);
    let rows = u16::try_from(state.nodes.len()).unwrap_or(u16::MAX).saturating_add(1);
    let [title, table, held, open, events] = Layout::vertical([
        Constraint::Length(2),
        Constraint::Max(rows),
        Constraint::Length(3),
        Constraint::Length(u16::from(!state.open.is_empty())),
        Constraint::Min(0),
    ])
    .areas(area);
    heading(state).render(title, &mut buffer);
    let (shown, left_out) = chosen(state, usize::from(table.height.saturating_sub(1)));
    let [table, more] = Layout::vertical([Constraint::Min(0), Constraint::Length(u16::from(left_out.is_some()))]).areas(table);
    members(state, &shown).render(table, &mut buffer);
    Paragraph::new(left_out.unwrap_or_default()).render(more, &mut buffer);
    holders(state).render(held, &mut buffer);
    Paragraph::new(Line::styled(format!("in force: {}", state.open.join(", ")), bad())).render(open, &mut buffer);
    happened(state, usize::from(events.height)).render(events, &mut buffer);
    buffer
}

/// What stands at the bottom of a screen, over the picture.
pub fn foot(width: u16) -> Buffer {
    let mut buffer = Buffer::empty(Rect::new(0, 0, width, 1));
    Paragraph::new(Line::styled("q quits", Style::new().add_modifier(Modifier::DIM))).render(buffer.area, &mut buffer);
    buffer
}

/// The same as lines of text, without colour and without space at their ends.
pub fn plain(buffer: &Buffer) -> String {
    let area = buffer.area;
    let line = |y: u16| {
        let cells = (area.left()..area.right()).filter_map(|x| buffer.cell((x, y)));
        cells.map(ratatui::buffer::Cell::symbol).collect::<String>().trim_end().to_owned()
    };
    let lines: Vec<String> = (area.top()..area.bottom()).map(line).collect();
    format!("{}\n", lines.join("\n").trim_end())
}

fn good() -> Style {
    Style::new().fg(Color::Green)
}
fn bad() -> Style {
    Style::new().fg(Color::Red)
}
fn odd() -> Style {
    Style::new().fg(Color::Yellow)
}

fn heading(state: &State) -> Paragraph<'static> {
    let running = state.nodes.iter().filter(|node| node.runs()).count();
    Paragraph::new(Line::from(vec![
        Span::styled(state.cluster.clone(), Style::new().add_modifier(Modifier::BOLD)),
        Span::raw(format!("  https://{}:6443  ", state.vip)),
        Span::styled(
            format!("{running} of {} machines run", state.nodes.len()),
            if running == state.nodes.len() { good() } else { bad() },
        ),
        Span::raw(format!("  {}", state.at.strftime("%H:%M:%S UTC"))),
    ]))
}

/// Who is shown in so many rows, and of those that are not, a line; `None`: all are. In their own order where they fit, as nobody who
/// looks for a node wants it elsewhere.
fn chosen(state: &State, room: usize) -> (Vec<&Node>, Option<Line<'static>>) {
    let mut nodes: Vec<&Node> = state.nodes.iter().collect();
    if nodes.len() <= room || room == 0 {
        nodes.truncate(room);
        return (nodes, None);
    }
    nodes.sort_by_key(|node| node.standing());
    let rest = nodes.split_off(room - 1);
    let count = |standing| rest.iter().filter(|node| node.standing() == standing).count();
    let (unwell, unknown) = (count(Standing::Unwell), count(Standing::Unknown));
    let parts = [(unwell, "not well"), (unknown, "not known")].into_iter().filter(|(count, _)| *count > 0);
    let parts: Vec<String> = parts.map(|(count, how)| format!("{count} of them {how}")).collect();
    let (how, style) = match (unwell, unknown) {
        (0, 0) => ("all well".to_owned(), Style::new()),
        (0, _) => (parts.join(", "), odd()),
        _ => (parts.join(", "), bad()),
    };
    let line = Line::styled(format!("… and {} more, {how}", rest.len()), style);
    (nodes, Some(line))
}

fn members(state: &State, nodes: &[&Node]) -> Table<'static> {
    let rows: Vec<Row<'static>> = nodes.iter().map(|node| row(state, node)).collect();
    let header = Row::new(HEADER.map(Cell::from)).style(Style::new().add_modifier(Modifier::UNDERLINED));
    Table::new(rows, WIDTHS.map(Constraint::Length)).header(header).column_spacing(1)
}

fn row(state: &State, node: &Node) -> Row<'static> {
    let number = |value: Option<String>| value.unwrap_or_default();
    let etcd = node.etcd.said();
    let role = node.role();
    let role_style = match role {
        "LEADER" => good().add_modifier(Modifier::BOLD),
        "silent" | "no leader" => bad(),
        "learner" => odd(),
        _ => Style::new(),
    };
    let lag = state.lag(node);
    let (api, api_style) = api(node);
    let (units, units_style) = units(node);
    // libvirt's longer words have their reason in brackets.
    let machine = node.machine.split(" (").next().unwrap_or_default().to_owned();
    Row::new(vec![
        Cell::from(node.name.clone()),
        cell(machine, if node.runs() { Style::new() } else { bad() }),
        cell(role, role_style),
        Cell::from(number(etcd.map(|etcd| etcd.term.to_string()))),
        Cell::from(number(etcd.map(|etcd| etcd.index.to_string()))),
        cell(number(lag.map(|lag| lag.to_string())), if lag.is_some_and(|lag| lag > 100) { odd() } else { Style::new() }),
        Cell::from(number(etcd.map(|etcd| (etcd.db_bytes >> 20).to_string()))),
        cell(api, api_style),
        cell(units, units_style),
    ])
}

fn cell(text: impl Into<String>, style: Style) -> Cell<'static> {
    let text: String = text.into();
    Cell::from(text).style(style)
}

fn api(node: &Node) -> (String, Style) {
    match (&node.api, &node.ready) {
        _ if !node.runs() && node.machine != "?" => (String::new(), Style::new()),
        (Heard::Said(Ok(ms)), _) => (format!("{ms} ms"), good()),
        (Heard::Said(Err(_)), _) => ("refuses".to_owned(), bad()),
        (Heard::Silent, _) => ("silent".to_owned(), bad()),
        (_, Heard::Said(true)) => ("Ready".to_owned(), good()),
        (_, Heard::Said(false)) => ("notReady".to_owned(), bad()),
        (_, Heard::Silent) => ("?".to_owned(), odd()),
        _ => (String::new(), Style::new()),
    }
}

fn units(node: &Node) -> (String, Style) {
    match &node.units {
        Heard::Unasked => (String::new(), Style::new()),
        Heard::Silent => ("no SSH".to_owned(), bad()),
        Heard::Said(units) => {
            let off: Vec<&str> = units.iter().filter(|(_, state)| *state != "active").map(|(unit, _)| unit.as_str()).collect();
            match off.as_slice() {
                [] => (format!("{} active", units.len()), Style::new()),
                [one] => (format!("-{}", one.trim_start_matches("kube-")), bad()),
                more => (format!("{} not active", more.len()), bad()),
            }
        }
    }
}

fn holders(state: &State) -> Paragraph<'static> {
    let nobody = || "nobody".to_owned();
    let leases = state.leases.iter().map(|(lease, holder)| {
        let short = lease.trim_start_matches("kube-");
        format!("{short}: {}", holder.clone().unwrap_or_else(nobody))
    });
    let leases: Vec<String> = leases.collect();
    let address = format!("API's address: {}", state.vip_holder().map_or_else(nobody, str::to_owned));
    Paragraph::new(vec![Line::raw(""), Line::raw(address), Line::raw(leases.join("   "))])
}

/// The last events that fit, the newest at the bottom.
fn happened(state: &State, room: usize) -> Paragraph<'static> {
    let room = room.saturating_sub(1);
    let from = state.events.len().saturating_sub(room);
    let mut lines = vec![Line::raw("")];
    lines.extend(state.events.iter().skip(from).map(|(at, text)| {
        Line::from(vec![
            Span::styled(format!("{}  ", at.strftime("%H:%M:%S")), Style::new().add_modifier(Modifier::DIM)),
            Span::raw(text.clone()),
        ])
    }));
    Paragraph::new(lines)
}

#[cfg(test)]
#[path = "frame_tests.rs"]
mod tests;
