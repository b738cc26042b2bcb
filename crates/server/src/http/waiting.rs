//! How many requests wait, on this node and of each tenant.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use api::{Code, Problem};

use crate::http::call::Outcome;

/// Waiting requests.
#[derive(Debug, Default)]
pub(crate) struct Waiting {
    all: AtomicUsize,
    tenants: Mutex<BTreeMap<Arc<str>, usize>>,
}

/// One of them; it is counted until this is dropped.
pub(crate) struct Place<'a> {
    waiting: &'a Waiting,
    tenant: Arc<str>,
}

impl Waiting {
    /// Counts one more, unless there are too many.
    pub(crate) fn enter(&self, tenant: &Arc<str>, all_max: usize, tenant_max: usize) -> Outcome<Place<'_>> {
        let mut tenants = self.tenants.lock().expect("nothing panics while it holds this lock");
        if self.all.load(Ordering::Relaxed) >= all_max {
            let problem = Problem::new(Code::Overloaded, "limits.waiters is reached; ask without waiting");
            return Err(Box::new(problem.retry_after(1000)));
        }
        let of_tenant = tenants.entry(tenant.clone()).or_default();
        if *of_tenant >= tenant_max {
            let problem = Problem::new(Code::TooManyWaiters, "limits.waitersPerTenant is reached; ask without waiting");
            return Err(Box::new(problem.retry_after(1000)));
        }
        *of_tenant += 1;
        self.all.fetch_add(1, Ordering::Relaxed);
        Ok(Place { waiting: self, tenant: tenant.clone() })
    }

    /// How many wait.
    pub(crate) fn len(&self) -> usize {
        self.all.load(Ordering::Relaxed)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut tenants = self.waiting.tenants.lock().expect("nothing panics while it holds this lock");
        self.waiting.all.fetch_sub(1, Ordering::Relaxed);
        if let Some(count) = tenants.get_mut(&self.tenant) {
            *count -= 1;
            if *count == 0 {
                tenants.remove(&self.tenant);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_limits_hold_and_places_come_back() {
        let waiting = Waiting::default();
        let (a, b): (Arc<str>, Arc<str>) = ("a".into(), "b".into());
        let code = |tenant| waiting.enter(tenant, 3, 2).map(|_| ()).map_err(|problem| problem.code);
        let first = waiting.enter(&a, 3, 2);
        let second = waiting.enter(&a, 3, 2);
        assert_eq!(code(&a), Err(Code::TooManyWaiters));
        let third = waiting.enter(&b, 3, 2);
        assert_eq!(code(&b), Err(Code::Overloaded));
        drop((first, second));
        assert_eq!(code(&a), Ok(()));
        drop(third);
        assert_eq!(waiting.len(), 0);
        assert!(waiting.tenants.lock().expect("it is free").is_empty());
    }
}
