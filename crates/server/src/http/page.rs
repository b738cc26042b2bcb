//! A page for people who open a node in a browser: who it is, whether its cluster works, and where the others are. It asks for nothing more
//! from anywhere, so it works on a machine without a network and during an outage.

use cluster::view::{Inspection, NodeView};

/// The page, as HTML. `who`: who looks, and as what.
pub(crate) fn page(look: &Inspection, raft: bool, who: &str, read_only: bool) -> String {
    let nodes = look.nodes();
    let health = look.health();
    let own = nodes.nodes.iter().find(|node| node.own);
    let reasons: String = health.reasons.iter().map(|reason| format!("<li>{}</li>", escaped(reason))).collect();
    let rows: String = nodes.nodes.iter().map(row).collect();
    let mut facts = vec![("Node", look.name.clone()), ("Role", own.map(role).unwrap_or_default())];
    facts.push(("Mode", if raft { "cluster".into() } else { "single mode: no peers, no replicas".into() }));
    facts.push(("Actions", if read_only { "none are taken here: read-only".into() } else { "taken".into() }));
    facts.push(("You are", who.to_owned()));
    facts.push(("Cluster", nodes.cluster_id.clone().unwrap_or_else(|| "none yet".into())));
    facts.push(("Term", nodes.term.to_string()));
    let durability =
        if look.about.is_buffered { "buffered: the power takes what was acknowledged last" } else { "fsync" };
    facts.push(("Storage", format!("{} {}", look.provider, look.about.paths.join(", "))));
    facts.push(("Durability", durability.into()));
    facts.push(("Version", cluster::view::BUILD.into()));
    facts.push(("Uptime", duration(look.uptime.0)));
    let facts: String =
        facts.iter().map(|(name, value)| format!("<tr><th>{name}</th><td>{}</td></tr>\n", escaped(value))).collect();
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta http-equiv=\"refresh\" content=\"5\">\n\
         <meta name=\"viewport\" content=\"width=device-width\"><title>{name}: codeq</title>\n<style>{STYLE}</style></head><body>\n\
         <h1>codeq on {name}</h1>\n<p class=\"{status}\">The cluster is {status}: {summary}.</p>\n<ul>{reasons}</ul>\n\
         <table id=\"nodes\"><thead><tr><th>Node</th><th>Peers reach it at</th><th>Status</th><th>Voter</th><th>Lag</th>\
         <th>Health</th></tr></thead><tbody>\n{rows}</tbody></table>\n<h2>This node</h2>\n<table>{facts}</table>\n\
         <p><a href=\"/cluster/nodes\">nodes</a> · <a href=\"/cluster/status\">status</a> · <a href=\"/readyz?verbose\">readiness</a> · \
         <a href=\"/metrics\">metrics</a></p>\n</body></html>\n",
        name = escaped(&look.name),
        status = health.status,
        summary = escaped(&health.quorum.summary),
    )
}

const STYLE: &str = "body{font:16px system-ui,sans-serif;margin:2rem;max-width:70rem}table{border-collapse:collapse}\
                     th,td{text-align:left;padding:.3rem 1rem .3rem 0;border-bottom:1px solid #8884}\
                     .own{font-weight:bold}.unavailable{color:#b00}.degraded{color:#a60}:root{color-scheme:light dark}";

/// A member. Its name leads to its own page.
fn row(node: &NodeView) -> String {
    let name = match node.public_url.starts_with("http://") || node.public_url.starts_with("https://") {
        true => format!("<a href=\"{}/\">{}</a>", escaped(node.public_url.trim_end_matches('/')), escaped(&node.name)),
        false => escaped(&node.name),
    };
    let (class, own) = if node.own { (" class=\"own\"", " (this node)") } else { ("", "") };
    let leader = if node.status == "leader" { " ★" } else { "" };
    format!(
        "<tr{class}><td>{name}{own}</td><td>{}</td><td>{}{leader}</td><td>{}</td><td>{}</td><td>{}</td></tr>\n",
        escaped(&node.raft_addr),
        node.status,
        if node.voter { "yes" } else { "no" },
        node.lag.map(|lag| lag.to_string()).unwrap_or_default(),
        escaped(&node.message),
    )
}

fn role(node: &NodeView) -> String {
    format!("{}{}", node.status, if node.voter { ", votes" } else { ", does not vote" })
}

/// The two largest units.
fn duration(ms: u64) -> String {
    let seconds = ms / 1000;
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{} h {} min", seconds / 3600, seconds / 60 % 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds / 3600 % 24),
    }
}

/// Text in which nothing is markup.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            other => out.push(other),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use cluster::Stage;

    /// Goal: whatever a node is called, the page shows it as text, and asks nobody but this node for anything.
    #[test]
    fn names_are_text() {
        let look = Inspection {
            stage: Stage::Unjoined("1 of 3 <nodes>".into()),
            ..Inspection::new("<script>alert(1)</script>")
        };
        let page = page(&look, true, "<b>", false);
        assert!(page.contains("&lt;script&gt;alert(1)&lt;/script&gt; (this node)"), "{page}");
        assert!(!page.contains("<b>") && page.contains("&lt;b&gt;"), "{page}");
        assert!(!page.contains("<script") && page.contains("1 of 3 &lt;nodes&gt;"), "{page}");
        assert!(!page.contains("src=") && !page.contains("//"), "it asks for something: {page}");
    }

    #[test]
    fn times_have_two_units() {
        let check = |ms: u64, expected: &str| assert_eq!(duration(ms), expected);
        check(59_999, "59 s");
        check(61_000, "1 min 1 s");
        check(3_660_000, "1 h 1 min");
        check(90_000_000, "1 d 1 h");
    }
}
