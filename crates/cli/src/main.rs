//! codeq.
use base::Millis;
use cluster::{Data, Durability, NodeConfig};
use server::settings::{HttpSettings, Limits, Settings};

mod bench;
mod output;
use clap::Parser;
#[derive(Parser)]
struct B {
    #[command(flatten)]
    args: bench::BenchArgs,
}

fn duration(text: &str) -> Result<std::time::Duration, String> {
    let units = [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000)];
    let found = units.iter().find_map(|(unit, factor)| Some((text.strip_suffix(unit)?.parse::<u64>().ok()?, *factor)));
    found
        .map(|(number, factor)| std::time::Duration::from_millis(number * factor))
        .ok_or_else(|| "a duration is a number with a unit: 500ms, 10s, 5m".into())
}

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() {
    if std::env::args().nth(1).as_deref() == Some("bench") {
        let b = B::parse_from(std::env::args().skip(1));
        bench::run(&b.args).unwrap();
        return;
    }
    tracing_subscriber::fmt().with_env_filter("info").init();
    let args: Vec<String> = std::env::args().collect();
    let dir = args.get(1).cloned().unwrap_or("/tmp/codeq-data".into());
    let shards = args.get(2).map_or(1, |s| s.parse().unwrap());
    let settings = Settings {
        node: NodeConfig {
            name: "node".into(),
            name_is_given: false,
            data: if dir == "mem" { Data::Memory } else { Data::Directory(dir.into()) },
            peers: None,
            url: String::new(),
            shards,
            durability: if std::env::var("BUFFERED").is_ok() {
                Durability::Buffered(Millis(50))
            } else {
                Durability::Fsync
            },
            segment_bytes: 64 << 20,
            checkpoint_interval: Millis(5000),
            checkpoint_log_bytes: 64 << 20,
            inbox_depth: 4096,
            propose_timeout: Millis(10000),
            leader_wait: Millis(2000),
            trailing_log_bytes: 256 << 20,
            election_timeout: Millis(500),
            heartbeat: Millis(100),
            entry_operations_max: 512,
            entry_bytes_max: 256 << 10,
        },
        policy: Default::default(),
        http: HttpSettings {
            addr: "127.0.0.1:8080".parse().unwrap(),
            header_timeout: Millis(5000),
            body_timeout: Millis(30000),
            idle_timeout: Millis(120000),
            header_bytes_max: 32 << 10,
            connections_max: 20000,
            threads: 2,
        },
        auth: server::auth::AuthSettings { open: Some(server::auth::OpenMode { names: vec![] }), ..Default::default() },
        limits: Limits {
            body_bytes_max: 16 << 20,
            payload_bytes_max: 1 << 20,
            result_bytes_max: 1 << 20,
            batch_create_max: 100,
            batch_results_max: 100,
            batch_claim_max: 10,
            delay_max: Millis(3650 * 86400 * 1000),
            waiters_max: 10000,
            waiters_per_tenant_max: 2000,
            live_tasks_max: 0,
            payload_cache_bytes: 256 << 20,
        },
        drain_timeout: Millis(5000),
        metrics_enabled: true,
        metrics_commands_max: 1000,
        raft: true,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut server = match server::Server::start(settings) {
            Ok(s) => s,
            Err(e) => {
                eprintln!("{e}");
                std::process::exit(1)
            }
        };
        server.node().ready().await;
        eprintln!("listening on {}", server.addr());
        tokio::select! {
            _ = tokio::signal::ctrl_c() => { server.stop().await.unwrap(); }
            e = server.failed() => { eprintln!("{e}"); std::process::exit(9) }
        }
    });
}
