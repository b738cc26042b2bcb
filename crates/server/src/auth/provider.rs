//! From the configuration of a provider to the tokens it accepts.

use crate::auth::StaticTokens;

/// Members of a `multi` provider.
const MEMBERS: std::ops::RangeInclusive<usize> = 2..=16;

/// A member of a `multi` provider.
#[derive(serde::Deserialize)]
struct Member {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    config: serde_json::Value,
}

/// The configuration of a `multi` provider.
#[derive(serde::Deserialize)]
struct Multi {
    providers: Vec<Member>,
}

/// The tokens that a provider of kind `static` or `multi` accepts. `config` is JSON.
///
/// # Errors
/// What is wrong with it; no value is repeated, since it is a secret.
pub(crate) fn tokens_of(kind: &str, config: &str, default_tenant: Option<&str>) -> Result<StaticTokens, String> {
    if kind == "static" {
        return StaticTokens::from_config(config, default_tenant);
    }
    let multi: Multi = serde_json::from_str(config).map_err(|error| {
        let place = format!("line {} column {}", error.line(), error.column());
        format!("multi auth: invalid config: it is not {{\"providers\": [{{\"type\": …, \"config\": …}}]}}, at {place}")
    })?;
    if !MEMBERS.contains(&multi.providers.len()) {
        return Err(format!(
            "multi auth: {} providers; allowed are {} to {}",
            multi.providers.len(),
            MEMBERS.start(),
            MEMBERS.end()
        ));
    }
    let mut members = Vec::new();
    for (place, member) in multi.providers.iter().enumerate() {
        members.push(
            match member.kind.trim() {
                "static" => StaticTokens::from_config(&member.config.to_string(), default_tenant),
                "jwks" => Err("this version cannot check tokens against a key set".into()),
                "multi" | "composite" => Err("multi providers do not nest".into()),
                _ => Err("its type is not static".into()),
            }
            .map_err(|why| format!("multi auth: provider {}: {why}", place + 1))?,
        );
    }
    Ok(StaticTokens::joined(members))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_multi_provider_asks_its_members_in_turn() {
        let json = r#"{"providers": [
            {"type": "static", "config": {"token": "first-token-of-two", "subject": "one"}},
            {"type": "static", "config": {"token": "first-token-of-two", "subject": "never"}},
            {"type": "static", "config": "another-long-token"}]}"#;
        let tokens = tokens_of("multi", json, None).expect("it is a configuration");
        let subject = |token: &str| tokens.find(token).expect("it is known").subject.to_string();
        assert_eq!(subject("first-token-of-two"), "one");
        assert_eq!(subject("another-long-token"), "static");
        assert!(tokens.find("third").is_err());
    }

    #[test]
    fn what_is_wrong_with_a_multi_provider_is_said_without_its_values() {
        let refusal = |json: &str| tokens_of("multi", json, None).map(|_| ()).expect_err("it is refused");
        assert!(refusal("{\"providers\": \"hidden\"}").starts_with("multi auth: invalid config: it is not "));
        assert!(!refusal("{\"providers\": \"hidden\"}").contains("hidden"));
        assert_eq!(refusal("{\"providers\": []}"), "multi auth: 0 providers; allowed are 2 to 16");
        let two = |member: &str| {
            refusal(&format!("{{\"providers\": [{{\"type\": \"static\", \"config\": \"x\"}}, {member}]}}"))
        };
        assert_eq!(two("{\"type\": \"multi\"}"), "multi auth: provider 2: multi providers do not nest");
        assert_eq!(two("{\"type\": \"static\"}"), "multi auth: provider 2: static auth: missing config");
        assert!(two("{\"type\": \"jwks\"}").contains("key set"));
    }
}
