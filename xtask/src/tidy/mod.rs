//! `cargo xtask tidy`: the rules of this repository that no other tool checks. One table; each rule says what to do instead.
//!
//! A rule that cannot fail is no rule: each has a test that plants a violation and sees it found.

mod crates;
mod documents;
mod files;
mod policy;
pub(crate) mod rust;
mod words;

use std::fmt;

use anyhow::{Result, ensure};

use crate::repository::Repository;

/// Something that must hold everywhere.
pub(crate) struct Rule {
    pub(crate) name: &'static str,
    /// What to do where it does not hold.
    pub(crate) instead: &'static str,
    pub(crate) check: fn(&Repository) -> Vec<Violation>,
}

/// A place where a rule does not hold.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Violation {
    /// A path, with a line where there is one; or a crate.
    pub(crate) at: String,
    pub(crate) what: String,
}

/// Every rule, by what it looks at.
pub(crate) fn rules() -> impl Iterator<Item = &'static Rule> {
    [crates::RULES, words::RULES, files::RULES, documents::RULES, policy::RULES].into_iter().flatten()
}

/// Checks every rule and prints what does not hold.
///
/// # Errors
/// Something does not hold, or the repository cannot be read.
pub(crate) fn run() -> Result<()> {
    let repository = Repository::read()?;
    let mut found = 0;
    for rule in rules() {
        let mut violations = (rule.check)(&repository);
        violations.sort();
        violations.dedup();
        for violation in &violations {
            println!("{violation} [{}]", rule.name);
        }
        if !violations.is_empty() {
            println!("  instead: {}\n", rule.instead);
        }
        found += violations.len();
    }
    ensure!(found == 0, "{found} violations");
    println!("{} rules hold over {} files", rules().count(), repository.files.len());
    Ok(())
}

impl Violation {
    pub(crate) fn new(at: impl Into<String>, what: impl Into<String>) -> Violation {
        Violation { at: at.into(), what: what.into() }
    }

    pub(crate) fn in_line(path: &str, line: usize, what: impl Into<String>) -> Violation {
        Violation::new(format!("{path}:{line}"), what)
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.at, self.what)
    }
}

/// What the tests of the rules share: small repositories with something planted in them.
#[cfg(test)]
mod planted {
    use std::collections::BTreeMap;

    use crate::repository::{File, Package, Packages, Repository};
    use crate::tidy::{Violation, rules};

    /// A day that the planted dates refer to.
    pub(super) const TODAY: (i32, time::Month, u8) = (2026, time::Month::November, 21);

    pub(super) fn repository(files: &[(&str, &str)], packages: Packages) -> Repository {
        let files: BTreeMap<String, File> = files
            .iter()
            .map(|(path, text)| {
                ((*path).to_owned(), File::new(path, text.as_bytes().to_vec()).expect("it can be read"))
            })
            .collect();
        let today = time::Date::from_calendar_date(TODAY.0, TODAY.1, TODAY.2).expect("a day");
        Repository { files, packages, today }
    }

    /// Packages as `name needs names; tests need names`. A name of this workspace is ours, any other one is from the registry.
    pub(super) fn packages(ours: &[&str], rows: &[(&str, &[&str], &[&str])]) -> Packages {
        let mut packages =
            Packages { ours: ours.iter().map(|name| (*name).to_owned()).collect(), ..Packages::default() };
        for (name, needs, tests_need) in rows {
            let list = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
            let package = Package {
                name: (*name).into(),
                version: "1.0.0".into(),
                license: Some("MIT".into()),
                description: Some("something".into()),
                source: (!ours.contains(name)).then(|| crate::tidy::policy::REGISTRY.into()),
                needs: list(needs),
                tests_need: list(tests_need),
                ..Package::default()
            };
            packages.all.insert((*name).into(), package);
        }
        packages
    }

    /// The places that the rule of that name finds.
    pub(super) fn found(rule: &str, repository: &Repository) -> Vec<String> {
        let rule = rules().find(|known| known.name == rule).expect("the rule exists");
        let mut violations: Vec<Violation> = (rule.check)(repository);
        violations.sort();
        violations.iter().map(ToString::to_string).collect()
    }

    /// Asserts that a rule finds exactly what was planted, one line each.
    pub(super) fn check(rule: &str, repository: &Repository, expected: &[&str]) {
        assert_eq!(found(rule, repository), expected, "rule {rule}");
    }

    /// Goal: no rule of the table is a rule in name only. Each one has a test of its own that names it.
    #[test]
    fn every_rule_has_a_planted_violation() {
        let tests = [
            include_str!("crates.rs"),
            include_str!("words.rs"),
            include_str!("files.rs"),
            include_str!("documents.rs"),
            include_str!("policy.rs"),
        ];
        let tests = tests.map(|text| text.split_whitespace().collect::<String>());
        for rule in rules() {
            let call = format!("check(\"{}\"", rule.name);
            assert!(tests.iter().any(|text| text.contains(&call)), "no test plants a violation of {}", rule.name);
        }
    }
}
