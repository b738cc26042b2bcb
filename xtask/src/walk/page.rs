//! The compose files that walks begin with: what their services are called, which ports they have, and what processes are told in their place.

use std::collections::BTreeMap;

/// A compose file with three nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Page {
    /// codeQ's own, with its variables.
    Raft,
    /// Three nodes that wait to be introduced.
    Join,
    /// Orchestrator's variables.
    Sqlite,
    /// raftbase's command lines: three that list each other. There is no compose file of it.
    Listed,
}

/// Good for producers and workers, and for administrators of the cluster.
const TOKEN: &str = r#"{"token":"dev-token","subject":"dev","scopes":["codeq:claim","codeq:heartbeat","codeq:abandon","codeq:nack","codeq:result","codeq:subscribe"],"eventTypes":["*"],"raw":{"tenantId":"dev-tenant","role":"ADMIN","clusterRole":"admin"}}"#;

impl Page {
    /// Its services.
    pub(crate) fn names(self) -> &'static [&'static str; 3] {
        match self {
            Page::Raft | Page::Join => &["node-a", "node-b", "node-c"],
            Page::Sqlite => &["codeq1", "codeq2", "codeq3"],
            Page::Listed => &["n1", "n2", "n3"],
        }
    }

    /// The folder of its file, and where its containers are reached on this machine; nothing: it has none.
    pub(crate) fn file(self) -> Option<(&'static str, [u16; 3])> {
        match self {
            Page::Raft => Some(("raft-cluster", [8080, 8081, 8082])),
            Page::Join => Some(("join-demo", [8180, 8181, 8182])),
            Page::Sqlite => Some(("sqlite-demo", [3001, 3002, 3003])),
            Page::Listed => None,
        }
    }

    /// The token that its clients show.
    pub(crate) fn token(self) -> Option<&'static str> {
        (self == Page::Raft).then_some("dev-token")
    }

    /// What a container is told beside what its file says.
    pub(crate) fn of_container(self) -> BTreeMap<String, String> {
        // How full this machine's disk is, is nobody's business here.
        let shared = [("CODEQ_LOG_FORMAT", "text"), ("CODEQ_DISK_LOW", "0"), ("CODEQ_DISK_CRITICAL", "0")];
        let mut variables: BTreeMap<String, String> =
            shared.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        if self == Page::Raft {
            let config = r#"{"path":"/var/lib/codeq/pebble","numShards":1}"#;
            variables.insert("PERSISTENCE_CONFIG".into(), config.into());
        }
        variables
    }

    /// Everything that a process is told which does what a container of the file does, with its data there. `peers` and `https`: the ports of all.
    pub(crate) fn of_process(self, place: usize, data: &str, peers: &[u16], https: &[u16]) -> BTreeMap<String, String> {
        let names = self.names();
        let list = |shown: &dyn Fn(usize) -> String| {
            (0..names.len()).map(|place| format!("{}={}", names[place], shown(place))).collect::<Vec<_>>().join(",")
        };
        let founders = list(&|place| format!("127.0.0.1:{}", peers[place]));
        let own_peer = format!("127.0.0.1:{}", peers[place]);
        let shared = [
            ("PORT", https[place].to_string()),
            ("CODEQ_LOG_FORMAT", "text".into()),
            ("CODEQ_DISK_LOW", "0".into()),
            ("CODEQ_DISK_CRITICAL", "0".into()),
            ("CODEQ_PUBLIC_URL", format!("http://localhost:{}", https[place])),
        ];
        let own: Vec<(&str, String)> = match self {
            Page::Raft => vec![
                ("ENV", "prod".into()),
                ("PERSISTENCE_PROVIDER", "pebble".into()),
                ("PERSISTENCE_CONFIG", serde_json::json!({ "path": data, "numShards": 1 }).to_string()),
                ("PRODUCER_AUTH_PROVIDER", "static".into()),
                ("PRODUCER_AUTH_CONFIG", TOKEN.into()),
                ("WORKER_AUTH_PROVIDER", "static".into()),
                ("WORKER_AUTH_CONFIG", TOKEN.into()),
                ("RAFT_ENABLED", "true".into()),
                ("RAFT_MUX_ENABLED", "true".into()),
                ("RAFT_SELF_ID", names[place].into()),
                ("RAFT_BIND_ADDR", own_peer),
                ("RAFT_PEERS", founders),
                ("RAFT_PEER_HTTP_ADDRS", list(&|place| format!("http://127.0.0.1:{}", https[place]))),
                ("RAFT_BOOTSTRAP", (place == 0).to_string()),
            ],
            Page::Join => vec![
                ("CODEQ_NODE_ID", names[place].into()),
                ("CODEQ_DATA_DIR", data.into()),
                ("CODEQ_RAFT_ADDR", own_peer),
                ("CODEQ_BOOTSTRAP_EXPECT", names.len().to_string()),
                ("CODEQ_LOG_LEVEL", "debug".into()),
            ],
            Page::Sqlite => vec![
                ("CODEQ_NODE_ID", names[place].into()),
                ("CODEQ_DATA_DIR", data.into()),
                ("RAFT_BIND_ADDR", own_peer),
                ("RAFT_NODES", founders),
                ("CODEQ_RAFT_STATUS_LOG", "5s".into()),
            ],
            Page::Listed => vec![
                ("CODEQ_NODE_ID", names[place].into()),
                ("CODEQ_DATA_DIR", data.into()),
                ("CODEQ_RAFT_ADDR", own_peer),
                ("CODEQ_CLUSTER_TOKEN", "demo".into()),
                ("CODEQ_INITIAL_CLUSTER", founders),
            ],
        };
        shared.into_iter().chain(own).map(|(name, value)| (name.to_owned(), value)).collect()
    }
}
