//! Open mode: nobody needs a token, so the browser's own rules must not let pages of other sites in.

use api::{Code, Problem};

/// What an open server answers to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenMode {
    /// Names and addresses, besides those of loopback, under which it was opened on purpose; with or without a port.
    pub names: Vec<String>,
}

impl OpenMode {
    /// Refuses a request whose `Host` is not this machine (DNS rebinding), and a changing one whose `Origin` is another site.
    pub(crate) fn check(&self, host: Option<&str>, origin: Option<&str>, changes: bool) -> Result<(), Box<Problem>> {
        let refuse = |detail: String| Err(Box::new(Problem::new(Code::OriginNotAllowed, detail)));
        if let Some(host) = host
            && !self.names.iter().any(|own| own == host)
            && !self.is_own(name_of(host))
        {
            return refuse(format!("without credentials this server answers only to localhost, not to {host}"));
        }
        if changes && !is_own_site(host, origin) {
            return refuse("without credentials this server takes changes from its own pages only".into());
        }
        Ok(())
    }

    fn is_own(&self, name: &str) -> bool {
        let address = name.trim_start_matches('[').trim_end_matches(']').parse::<std::net::IpAddr>();
        name.eq_ignore_ascii_case("localhost")
            || address.is_ok_and(|address| address.is_loopback())
            || self.names.iter().any(|own| own.eq_ignore_ascii_case(name))
    }
}

/// Whether a request comes from one of the own pages, or from no page at all.
pub(crate) fn is_own_site(host: Option<&str>, origin: Option<&str>) -> bool {
    let Some(origin) = origin else { return true };
    host.is_some_and(|host| origin.split_once("://").is_some_and(|(_, site)| site == host))
}

/// A `Host` header without its port.
fn name_of(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) && !name.ends_with(':') => name,
        _ => host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machine_is_answered() {
        let open = OpenMode { names: vec!["queue.lan".into()] };
        let allowed = |host: &str| open.check(Some(host), None, true).is_ok();
        for host in ["localhost", "LocalHost:8080", "127.0.0.1:8080", "127.1.2.3", "[::1]:8080", "queue.lan:80"] {
            assert!(allowed(host), "{host}");
        }
        for host in
            ["evil.example", "evil.example:8080", "localhost.evil.example", "10.0.0.1:8080", "127.0.0.1.nip.io", ""]
        {
            assert!(!allowed(host), "{host}");
        }
        assert!(open.check(None, None, true).is_ok(), "HTTP/1.0 has no host");
    }

    #[test]
    fn pages_of_other_sites_change_nothing() {
        let open = OpenMode { names: Vec::new() };
        let host = Some("localhost:8080");
        assert!(open.check(host, Some("http://localhost:8080"), true).is_ok());
        assert!(open.check(host, Some("http://evil.example"), false).is_ok());
        for origin in ["http://evil.example", "null", "http://localhost:9090", "localhost:8080"] {
            assert!(open.check(host, Some(origin), true).is_err(), "{origin}");
        }
    }
}
