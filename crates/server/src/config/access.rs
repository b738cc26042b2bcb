//! Who may use the server, and from where: how `auth.mode`, `insecure`, `env`, `http.addr` and the providers go together.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, ToSocketAddrs};

use crate::auth::{AuthSettings, OpenMode, StaticTokens, tokens_of};
use crate::config::Notice;
use crate::config::kinds::Address;
use crate::config::sources::read_by_others;
use crate::config::values::Values;
use crate::reload::{HttpFiles, TokensFile};

/// What comes of these settings.
pub(crate) struct Access {
    /// Where to listen.
    pub(crate) addr: SocketAddr,
    pub(crate) auth: AuthSettings,
    /// What encrypts it.
    pub(crate) encryption: Option<HttpFiles>,
    /// Where tokens with a role in the cluster stand.
    pub(crate) roles: Option<TokensFile>,
}

/// Decides who may use the server, and from where.
pub(crate) fn decide(values: &Values, notices: &mut Vec<Notice>, problems: &mut Vec<String>) -> Access {
    let before = problems.len();
    let producer = side(values, "producer", problems);
    let worker = side(values, "worker", problems);
    let roles = values.maybe_text("auth.tokensFile").map(TokensFile::open).transpose();
    let roles = roles.map_err(|why| problems.push(why)).ok().flatten();
    let encryption = encryption(values, notices, problems);
    let has_credentials = producer.is_some() || worker.is_some() || roles.is_some();
    // A provider that is refused is still meant to be there.
    let is_certain = problems.len() == before
        && !["auth.producer.provider", "auth.producer.config", "auth.worker.provider", "auth.worker.config"]
            .iter()
            .any(|name| values.get(name).is_broken);
    let is_insecure = values.flag("insecure");
    let given = values.addr("http.addr");
    let addr = resolve(given, has_credentials || is_insecure).unwrap_or_else(|| {
        problems.push(format!("{}: this name has no address", values.told("http.addr")));
        SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), given.port)
    });
    let is_local = addr.ip().is_loopback();
    warn_of_tokens(producer.as_ref(), worker.as_ref(), notices);
    let mut auth = AuthSettings {
        producer,
        worker,
        roles: roles.as_ref().map(|file| file.tokens.clone()),
        open: None,
        allow_producer_as_worker: values.flag("auth.allowProducerAsWorker"),
        default_tenant: values.maybe_text("auth.defaultTenant").map(str::to_owned),
    };
    if !is_certain {
        return Access { addr, auth, encryption, roles };
    }
    let about = ["auth.mode", "insecure", "env", "http.addr"];
    let mode = values.text("auth.mode");
    let is_dev = values.text("env") == "dev";
    let told = |name: &str| values.told(name);
    let providers = "set auth.producer.provider and auth.worker.provider";
    let open = |names: Vec<String>| Some(OpenMode { names });
    match (mode, has_credentials) {
        ("open", true) => values.refuse_if(true, &about, problems, || {
            let name = match (&auth.producer, &auth.worker) {
                (Some(_), _) => "auth.producer.provider",
                (None, Some(_)) => "auth.worker.provider",
                (None, None) => "auth.tokensFile",
            };
            format!("{}, though credentials are configured: {}; remove one", told("auth.mode"), told(name))
        }),
        (_, true) => {}
        ("configured", false) => values.refuse_if(true, &about, problems, || {
            format!("{}, but no credentials are: {providers}", told("auth.mode"))
        }),
        _ if mode == "open" || is_insecure => {
            let name = if mode == "open" { "auth.mode" } else { "insecure" };
            values.refuse_if(!is_dev, &about, problems, || {
                format!("{} leaves the server open to everybody, which {} forbids; {providers}", told(name), told("env"))
            });
            // Whoever opens it on one address means that address, also by its name.
            let names = if given.host.is_empty() || addr.ip().is_unspecified() { Vec::new() } else { vec![given.host.clone()] };
            auth.open = open(names);
            let text = format!("{}: whoever reaches {addr} can read and change everything", told(name));
            notices.push(Notice::warning(text));
        }
        _ if is_local && is_dev => {
            auth.open = open(Vec::new());
            let text = "no credentials are configured, so this machine's users need none; nobody else is let in";
            notices.push(Notice::info(text));
        }
        _ => values.refuse_if(true, &about, problems, || {
            format!(
                "no credentials are configured, which is allowed on loopback with env = dev only: {}, {}; {providers}, or insecure = \
                 true where it does not matter who comes",
                told("http.addr"),
                told("env")
            )
        }),
    }
    Access { addr, auth, encryption, roles }
}

/// What encrypts the connections of clients: a certificate with its key, or nothing.
fn encryption(values: &Values, notices: &mut Vec<Notice>, problems: &mut Vec<String>) -> Option<HttpFiles> {
    let [certificate, key, authorities] =
        ["http.cert", "http.key", "http.clientCa"].map(|name| values.maybe_text(name));
    let (Some(certificate), Some(key)) = (certificate, key) else {
        let given = ["http.cert", "http.key", "http.clientCa"].into_iter().find(|name| values.is_given(name));
        if let Some(given) = given {
            let missing = if certificate.is_none() { "http.cert" } else { "http.key" };
            problems.push(format!("{} needs {missing} as well", values.told(given)));
        }
        return None;
    };
    notices.extend(read_by_others(key.as_ref()));
    HttpFiles::open(certificate, key, authorities).map_err(|why| problems.push(why)).ok()
}

/// The provider of one side.
fn side(values: &Values, side: &str, problems: &mut Vec<String>) -> Option<StaticTokens> {
    let (provider, config) = (format!("auth.{side}.provider"), format!("auth.{side}.config"));
    let about = [provider.as_str(), config.as_str()];
    match (values.maybe_text(&provider), values.maybe_text(&config)) {
        (Some(kind), Some(json)) => match tokens_of(kind, json, values.maybe_text("auth.defaultTenant")) {
            Ok(tokens) => Some(tokens),
            Err(why) => {
                let origin = &values.get(&config).origin;
                problems.push(format!("{} with {config} ({origin}): {why}", values.told(&provider)));
                None
            }
        },
        (Some(_), None) => {
            values.refuse_if(true, &about, problems, || {
                format!("{} without {config}, which says what it accepts", values.told(&provider))
            });
            None
        }
        (None, Some(_)) => {
            values.refuse_if(true, &about, problems, || {
                format!("{config} ({}) without {provider}, which says how to read it", values.get(&config).origin)
            });
            None
        }
        (None, None) => None,
    }
}

/// The address to listen on; nothing if the name has none. IPv4 is preferred.
pub(crate) fn resolve(given: &Address, for_everybody: bool) -> Option<SocketAddr> {
    if given.host.is_empty() {
        let host = if for_everybody { Ipv4Addr::UNSPECIFIED } else { Ipv4Addr::LOCALHOST };
        return Some(SocketAddr::new(IpAddr::V4(host), given.port));
    }
    let found = (given.host.as_str(), given.port).to_socket_addrs().map(Vec::from_iter).unwrap_or_default();
    let best = found.iter().find(|addr| addr.is_ipv4()).or(found.first());
    best.copied()
}

fn warn_of_tokens(producer: Option<&StaticTokens>, worker: Option<&StaticTokens>, notices: &mut Vec<Notice>) {
    for (side, tokens) in [("producer", producer), ("worker", worker)] {
        let mut weaknesses: Vec<&str> = tokens.into_iter().flat_map(StaticTokens::weaknesses).collect();
        weaknesses.sort_unstable();
        weaknesses.dedup();
        for weakness in weaknesses {
            let text = format!("weak token: one of auth.{side}.config {weakness}; take a long random one");
            notices.push(Notice::warning(text));
        }
    }
    if let (Some(producer), Some(worker)) = (producer, worker) {
        let list = |tokens: &StaticTokens| {
            let mut tenants: Vec<String> = tokens.tenants().map(str::to_owned).collect();
            tenants.sort_unstable();
            tenants.dedup();
            tenants
        };
        let (producers, workers) = (list(producer), list(worker));
        if !producers.is_empty() && !workers.is_empty() && !producers.iter().any(|tenant| workers.contains(tenant)) {
            let text = format!(
                "producers are of tenant {}, workers of {}: their tasks never meet; give both tokens the same tenantId, or set \
                 auth.defaultTenant",
                producers.join(", "),
                workers.join(", ")
            );
            notices.push(Notice::warning(text));
        }
    }
}
