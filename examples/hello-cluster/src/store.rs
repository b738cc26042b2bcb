//! The state that every node has. It decides nothing by clock, chance or machine, so all nodes agree.

use std::collections::BTreeMap;

use cluster::codec::Malformed;
use cluster::{EntryInfo, SimpleMachine, UnknownOperation};
use serde::{Deserialize, Serialize};

/// More keys are refused.
const KEYS_MAX: usize = 100;

/// Texts by key, and a counter.
#[derive(Default, Serialize, Deserialize)]
pub(crate) struct Store {
    values: BTreeMap<String, String>,
    counter: u64,
}

/// What changes the state. It stays in logs, so what is once used keeps its meaning.
#[derive(Serialize, Deserialize)]
pub(crate) enum Operation {
    Put { key: String, value: String },
    Count,
}

/// What an operation answers: the new value, or why it was refused.
pub(crate) type Outcome = Result<String, String>;

#[derive(Clone)]
pub(crate) enum Question {
    Value(String),
    Counter,
}

impl SimpleMachine for Store {
    type Query = Question;
    type Answer = Option<String>;

    fn apply(&mut self, operation: &[u8], _entry: &EntryInfo) -> Result<Vec<u8>, UnknownOperation> {
        let outcome: Outcome = match serde_json::from_slice(operation).map_err(|_| UnknownOperation)? {
            Operation::Put { key, .. } if self.values.len() >= KEYS_MAX && !self.values.contains_key(&key) => {
                Err(format!("there are {KEYS_MAX} keys already"))
            }
            Operation::Put { key, value } => {
                self.values.insert(key, value.clone());
                Ok(value)
            }
            Operation::Count => {
                self.counter += 1;
                Ok(self.counter.to_string())
            }
        };
        Ok(serde_json::to_vec(&outcome).expect("texts are JSON"))
    }

    fn query(&self, question: &Question) -> Option<String> {
        match question {
            Question::Value(key) => self.values.get(key).cloned(),
            Question::Counter => Some(self.counter.to_string()),
        }
    }

    fn snapshot(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("texts are JSON")
    }

    fn restore(snapshot: &[u8]) -> Result<Store, Malformed> {
        serde_json::from_slice(snapshot).map_err(|_| Malformed)
    }
}
