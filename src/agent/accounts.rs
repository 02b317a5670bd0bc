//! Users and groups from the guest's own `passwd` and `group` files. NSS is not used: a static program cannot load its
//! modules.

use std::path::Path;

use super::sys::UserCredentials;
use super::{RequestFailure, read_text};
use crate::wire::Class;
use crate::wire::tree::Owner;

/// The contents of `passwd` and `group`.
#[derive(Debug, Default)]
pub struct Accounts {
    passwd: String,
    group: String,
}

/// A user who can run something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// Login name, or the number where it has none.
    pub name: String,
    /// The user's numbers, as the kernel takes them.
    pub identity: UserCredentials,
    /// Home folder.
    pub home: String,
    /// Login shell.
    pub shell: String,
}

impl Accounts {
    /// Reads `passwd` and `group` below `etc`. A missing file counts as empty: a user can still be given by number.
    #[must_use]
    pub fn read(etc: &Path) -> Self {
        Self { passwd: read_text(etc.join("passwd")), group: read_text(etc.join("group")) }
    }

    /// Returns the user with this name or number.
    ///
    /// # Errors
    /// When there is no such name. A number needs no entry.
    pub fn user(&self, wanted: &str) -> Result<User, RequestFailure> {
        let by_name = self.users().find(|user| user.name == wanted);
        let number = wanted.parse::<u32>().ok();
        let found = by_name.or_else(|| self.users().find(|user| Some(user.identity.uid) == number)).or_else(|| {
            number.map(|uid| User {
                name: wanted.to_owned(),
                identity: UserCredentials { uid, gid: uid, groups: Vec::new() },
                home: "/".into(),
                shell: "/bin/sh".into(),
            })
        });
        let mut user = found.ok_or_else(|| {
            RequestFailure::new(Class::NotFound {}, format!("there is no user `{wanted}` in the guest"))
        })?;
        user.identity.groups = self.groups_of(&user);
        Ok(user)
    }

    /// Returns the user and group number of an owner.
    ///
    /// # Errors
    /// When a name is not known.
    pub fn owner(&self, owner: &Owner) -> Result<(u32, u32), RequestFailure> {
        let user = self.user(&owner.user)?.identity;
        Ok((user.uid, owner.group.as_deref().map_or(Ok(user.gid), |group| self.group(group))?))
    }

    fn group(&self, wanted: &str) -> Result<u32, RequestFailure> {
        let by_name = self.groups().find(|(name, ..)| *name == wanted).map(|(_, gid, _)| gid);
        by_name.or_else(|| wanted.parse().ok()).ok_or_else(|| {
            RequestFailure::new(Class::NotFound {}, format!("there is no group `{wanted}` in the guest"))
        })
    }

    fn groups_of(&self, user: &User) -> Vec<u32> {
        let mine = self.groups().filter(|(_, _, members)| members.split(',').any(|member| member == user.name));
        let mut groups: Vec<u32> = mine.map(|(_, gid, _)| gid).collect();
        groups.push(user.identity.gid);
        groups.sort_unstable();
        groups.dedup();
        groups
    }

    fn users(&self) -> impl Iterator<Item = User> {
        self.passwd.lines().filter_map(parse_user)
    }

    fn groups(&self) -> impl Iterator<Item = (&str, u32, &str)> {
        self.group.lines().filter_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?;
            let gid = fields.nth(1)?.parse().ok()?;
            Some((name, gid, fields.next().unwrap_or_default()))
        })
    }
}

fn parse_user(line: &str) -> Option<User> {
    let fields: Vec<&str> = line.split(':').collect();
    let &[name, _, uid, gid, _, home, shell] = fields.as_slice() else { return None };
    let identity = UserCredentials { uid: uid.parse().ok()?, gid: gid.parse().ok()?, groups: Vec::new() };
    let home = if home.is_empty() { "/" } else { home };
    let shell = if shell.is_empty() { "/bin/sh" } else { shell };
    Some(User { name: name.into(), identity, home: home.into(), shell: shell.into() })
}

/// Creates a user with a home folder, for tests.
#[cfg(test)]
pub(super) fn user(name: &str, uid: u32, shell: &str) -> User {
    let identity = UserCredentials { uid, gid: uid, groups: Vec::new() };
    User { name: name.into(), identity, home: "/home/dev".into(), shell: shell.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accounts() -> Accounts {
        Accounts {
            passwd: "root:x:0:0:root:/root:/bin/bash\nbroken\nweb:x:33:33::/var/www:\n7:x:70:70::/:/bin/sh\n".into(),
            group: "root:x:0:\nweb:x:33:\nadm:x:4:syslog,web\nssl:x:110:web\nno\n".into(),
        }
    }

    #[test]
    fn users_are_found_by_name_and_number() {
        let web = accounts().user("web").unwrap();
        assert_eq!(web.identity, UserCredentials { uid: 33, gid: 33, groups: vec![4, 33, 110] });
        assert_eq!((web.home.as_str(), web.shell.as_str()), ("/var/www", "/bin/sh"));
        assert_eq!(accounts().user("33").unwrap().name, "web");
        assert_eq!(accounts().user("7").unwrap().identity.uid, 70, "a name goes before a number");
        assert_eq!(accounts().user("1000").unwrap().identity.gid, 1000);
        assert_eq!(accounts().user("nobody").unwrap_err().class, Class::NotFound {});
    }

    #[test]
    fn owners_have_the_group_that_was_asked_for_or_their_own() {
        let owner = |user: &str, group: Option<&str>| {
            accounts().owner(&Owner { user: user.into(), group: group.map(Into::into) }).ok()
        };
        assert_eq!(owner("web", None), Some((33, 33)));
        assert_eq!(owner("root", Some("ssl")), Some((0, 110)));
        assert_eq!(owner("12", Some("34")), Some((12, 34)));
        assert_eq!(owner("web", Some("nogroup")), None);
    }
}
