//! What all nodes say of themselves in one file, for whoever looks for a fault. No payload and no secret is in it.

use std::sync::Weak;

use cluster::bundle::Parts;

use crate::http::answer::Answer;
use crate::http::call::{Call, Outcome};
use crate::http::edge::{Edge, Shared};
use crate::http::snapshot::{no_backup, sent};
use crate::http::status::metrics;
use crate::log_lines::log_lines;

/// Pages of the cluster as this node sees it, below `/cluster/`.
const PAGES: [&str; 6] = ["status", "nodes", "groups", "health", "health-reports", "alarms"];

/// What is of the whole cluster: a file, and the page that it is.
const OF_ALL: [(&str, &str); 2] = [("events.jsonl", "/cluster/events"), ("timeline.json", "/cluster/timeline")];

impl Edge {
    /// A tar with what all nodes say of themselves.
    pub(crate) async fn bundle(&self, call: &Call) -> Outcome<Answer> {
        let mut more = Parts::new();
        for (name, page) in OF_ALL {
            let told = cluster::http::look_back(&self.node, page, "").await;
            more.extend(told.map(|answer| (name.to_owned(), answer.body)));
        }
        let bundle = self.acting(call).bundle(more).await.map_err(no_backup)?;
        let (name, left) = (format!("codeq-debug-{}.tar", self.node.identity().node), bundle.left());
        Ok(Answer::file(&name, sent(bundle, left)))
    }
}

/// What this server says of itself; nothing: it ends.
pub(crate) async fn describe(shared: Weak<Shared>) -> Parts {
    let Some(shared) = shared.upgrade() else { return Parts::new() };
    let mut parts = vec![
        ("settings.txt".to_owned(), shared.settings.shown.clone().into_bytes()),
        ("log.jsonl".to_owned(), log_lines().kept()),
    ];
    let look = shared.node.inspect();
    let pages = PAGES.into_iter().filter_map(|page| {
        let answer = cluster::http::get(&format!("/cluster/{page}"), &look, shared.settings.leader_lease)?;
        Some((format!("{page}.json"), answer.body))
    });
    parts.extend(pages);
    let elections = cluster::http::look_back(&shared.node, "/cluster/elections", "").await;
    parts.extend(elections.map(|answer| ("elections.json".to_owned(), answer.body)));
    parts.extend(metrics(&shared, None).await.map(|text| ("metrics.txt".to_owned(), text.into_bytes())));
    parts
}
