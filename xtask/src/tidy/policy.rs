//! Rules about other people's crates, as deny.toml states them: licences, sources, bans and standing exceptions.
//!
//! `cargo deny` reads the same file and does more where it is installed and its advisories can be had. What is checked here needs nothing but
//! the lock file.

use semver::{Version, VersionReq};
use serde::Deserialize;
use time::Date;

use crate::repository::{Package, Repository};
use crate::tidy::{Rule, Violation};

pub(crate) const RULES: &[Rule] = &[
    Rule {
        name: "licences",
        instead: "take another crate; or, if the licence may be combined with ours, allow it in deny.toml",
        check: licences,
    },
    Rule {
        name: "sources",
        instead: "take a released version from crates.io: it can be had for ever, and by everybody",
        check: sources,
    },
    Rule {
        name: "bans",
        instead: "do as the reason in deny.toml says; `cargo tree -i` shows who brings it",
        check: bans,
    },
    Rule {
        name: "exceptions",
        instead: "write into the reason, in this order: why it does not apply, `Kept true by:`, `Owner:`, `Review by: YYYY-MM-DD` \
                  (at most 90 days ahead), `Exit:`. Past the date: review it, and set the next one",
        check: exceptions,
    },
];

/// The one place that crates come from.
pub(crate) const REGISTRY: &str = "registry+https://github.com/rust-lang/crates.io-index";

/// Days that an exception may stand without a look at it.
const REVIEW_DAYS: i64 = 90;

#[derive(Deserialize)]
struct Deny {
    advisories: Advisories,
    licenses: Licenses,
    bans: Bans,
}

#[derive(Deserialize)]
struct Advisories {
    ignore: Vec<Exception>,
}

#[derive(Deserialize)]
struct Exception {
    id: String,
    reason: String,
}

#[derive(Deserialize)]
struct Licenses {
    allow: Vec<String>,
}

#[derive(Deserialize)]
struct Bans {
    deny: Vec<Ban>,
}

/// A crate that must not be there: at all, in some versions, or twice.
#[derive(Deserialize)]
struct Ban {
    /// `name`, or `name:versions`.
    #[serde(rename = "crate")]
    of: String,
    reason: String,
    #[serde(rename = "deny-multiple-versions", default)]
    only_twice: bool,
}

/// Hands deny.toml to a check; says so where it cannot be read.
fn with_deny(repository: &Repository, check: impl FnOnce(&Deny) -> Vec<Violation>) -> Vec<Violation> {
    let Some(text) = repository.text("deny.toml") else {
        return vec![Violation::new("deny.toml", "does not exist")];
    };
    match toml::from_str(text) {
        Ok(deny) => check(&deny),
        Err(error) => vec![Violation::new("deny.toml", format!("cannot be read: {error}"))],
    }
}

fn licences(repository: &Repository) -> Vec<Violation> {
    with_deny(repository, |deny| {
        let refused = |package: &&Package| !is_allowed(package.license.as_deref(), &deny.licenses.allow);
        let foreign = repository.packages.foreign().filter(refused);
        foreign
            .map(|package| {
                let license = package.license.as_deref().unwrap_or("no licence");
                Violation::new(name_and_version(package), format!("has {license}"))
            })
            .collect()
    })
}

fn is_allowed(license: Option<&str>, allowed: &[String]) -> bool {
    let parsed = license.and_then(|text| spdx::Expression::parse_mode(text, spdx::ParseMode::LAX).ok());
    parsed.is_some_and(|expression| {
        // Only the licence itself counts: an exception to it gives more, never less.
        expression.evaluate(|requirement| {
            let id = requirement.license.id().map(|id| id.name);
            id.is_some_and(|id| allowed.iter().any(|allowed| allowed == id))
        })
    })
}

fn sources(repository: &Repository) -> Vec<Violation> {
    let elsewhere = repository.packages.foreign().filter(|package| package.source.as_deref() != Some(REGISTRY));
    elsewhere
        .map(|package| {
            let source = package.source.as_deref().unwrap_or("a folder");
            Violation::new(name_and_version(package), format!("comes from {source}"))
        })
        .collect()
}

fn bans(repository: &Repository) -> Vec<Violation> {
    with_deny(repository, |deny| {
        let mut violations = Vec::new();
        for ban in &deny.bans.deny {
            let (name, versions) = ban.of.split_once(':').unwrap_or((&ban.of, "*"));
            let Ok(versions) = VersionReq::parse(versions) else {
                violations.push(Violation::new("deny.toml", format!("{} is no crate with versions", ban.of)));
                continue;
            };
            let hit = |package: &&Package| {
                package.name == name && Version::parse(&package.version).is_ok_and(|version| versions.matches(&version))
            };
            let hits: Vec<&Package> = repository.packages.foreign().filter(hit).collect();
            if !ban.only_twice || hits.len() > 1 {
                let found = hits.iter().map(|package| Violation::new(name_and_version(package), ban.reason.clone()));
                violations.extend(found);
            }
        }
        violations
    })
}

fn exceptions(repository: &Repository) -> Vec<Violation> {
    with_deny(repository, |deny| {
        let complaints = deny.advisories.ignore.iter().filter_map(|exception| {
            let what = complaint(&exception.reason, repository.today)?;
            Some(Violation::new("deny.toml", format!("{}: {what}", exception.id)))
        });
        complaints.collect()
    })
}

/// What is wrong with the reason of an exception.
fn complaint(reason: &str, today: Date) -> Option<String> {
    let parts = ["Kept true by:", "Owner:", "Review by:", "Exit:"];
    if let Some(missing) = parts.iter().find(|part| !reason.contains(**part)) {
        return Some(format!("its reason has no `{missing}`"));
    }
    let date = reason.split("Review by:").nth(1)?.split_whitespace().next().unwrap_or_default();
    let Some(review) = day(date.trim_end_matches('.')) else {
        return Some(format!("`{date}` is no day"));
    };
    let days = (review - today).whole_days();
    match days {
        ..0 => Some(format!("its review was due on {review}")),
        0..=REVIEW_DAYS => None,
        _ => Some(format!("its review is due in {days} days, more than {REVIEW_DAYS}")),
    }
}

/// A day as `2026-11-21`.
fn day(text: &str) -> Option<Date> {
    let mut parts = text.splitn(3, '-');
    let year = parts.next()?.parse().ok()?;
    let month: u8 = parts.next()?.parse().ok()?;
    let day = parts.next()?.parse().ok()?;
    Date::from_calendar_date(year, month.try_into().ok()?, day).ok()
}

fn name_and_version(package: &Package) -> String {
    format!("{} {}", package.name, package.version)
}

#[cfg(test)]
mod tests {
    use crate::repository::{Package, Packages, Repository};
    use crate::tidy::planted::{check, packages, repository};

    const DENY: &str = r#"
        [advisories]
        ignore = []
        [licenses]
        allow = ["MIT", "Apache-2.0"]
        [bans]
        deny = [
          { crate = "openssl", reason = "we use rustls" },
          { crate = "h2:<0.4.20", reason = "needs 0.4.20" },
          { crate = "ring", reason = "one of each", deny-multiple-versions = true },
        ]
    "#;

    /// A repository with this deny.toml and these crates: name, version, licence.
    fn planted(deny: &str, crates: &[(&str, &str, Option<&str>)]) -> Repository {
        let mut all = packages(&["queue"], &[("queue", &[], &[])]);
        for (name, version, license) in crates {
            let package = Package {
                name: (*name).into(),
                version: (*version).into(),
                license: license.map(Into::into),
                source: Some(crate::tidy::policy::REGISTRY.into()),
                ..Package::default()
            };
            all.all.insert(format!("{name} {version}"), package);
        }
        repository(&[("deny.toml", deny)], all)
    }

    #[test]
    fn a_licence_that_is_not_allowed_is_found() {
        let crates = [
            ("a", "1.0.0", Some("GPL-3.0-only")),
            ("b", "1.0.0", Some("GPL-3.0-only OR MIT")),
            ("c", "1.0.0", Some("MIT AND MPL-2.0")),
            ("d", "1.0.0", Some("MIT/Apache-2.0")),
            ("e", "1.0.0", None),
            ("f", "1.0.0", Some("Apache-2.0 WITH LLVM-exception")),
        ];
        let expected = ["a 1.0.0: has GPL-3.0-only", "c 1.0.0: has MIT AND MPL-2.0", "e 1.0.0: has no licence"];
        check("licences", &planted(DENY, &crates), &expected);
        check("licences", &repository(&[], Packages::default()), &["deny.toml: does not exist"]);
    }

    #[test]
    fn a_crate_from_elsewhere_is_found() {
        let mut files = planted(DENY, &[("a", "1.0.0", None), ("b", "1.0.0", None)]);
        files.packages.all.get_mut("a 1.0.0").expect("it is there").source = Some("git+https://x.example/a".into());
        check("sources", &files, &["a 1.0.0: comes from git+https://x.example/a"]);
    }

    #[test]
    fn a_banned_crate_is_found() {
        let crates =
            [("openssl", "0.10.1", None), ("h2", "0.4.19", None), ("ring", "0.16.1", None), ("ring", "0.17.2", None)];
        let expected = [
            "h2 0.4.19: needs 0.4.20",
            "openssl 0.10.1: we use rustls",
            "ring 0.16.1: one of each",
            "ring 0.17.2: one of each",
        ];
        check("bans", &planted(DENY, &crates), &expected);
        check("bans", &planted(DENY, &[("h2", "0.4.20", None), ("ring", "0.17.2", None)]), &[]);
    }

    #[test]
    fn an_exception_without_its_parts_or_past_its_day_is_found() {
        let with = |reason: &str| {
            let ignore = format!("ignore = [{{ id = \"RUSTSEC-1\", reason = \"{reason}\" }}]");
            planted(&DENY.replace("ignore = []", &ignore), &[])
        };
        let whole =
            |day: &str| with(&format!("It is fine. Kept true by: a rule. Owner: us. Review by: {day}. Exit: soon."));
        check("exceptions", &whole("2026-11-21"), &[]);
        check("exceptions", &whole("2027-02-19"), &[]);
        check("exceptions", &whole("2026-11-20"), &["deny.toml: RUSTSEC-1: its review was due on 2026-11-20"]);
        check(
            "exceptions",
            &whole("2027-02-20"),
            &["deny.toml: RUSTSEC-1: its review is due in 91 days, more than 90"],
        );
        check("exceptions", &whole("soon"), &["deny.toml: RUSTSEC-1: `soon.` is no day"]);
        check("exceptions", &with("It is fine."), &["deny.toml: RUSTSEC-1: its reason has no `Kept true by:`"]);
    }
}
