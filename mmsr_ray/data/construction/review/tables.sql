-- The tables of a review. Decisions are only ever added: what counts is the view `current`.
create table if not exists facts (name text primary key, value text not null);
create table if not exists items (
  key text primary key, position integer not null, content text not null,
  looks integer not null default 0, -- first looks in force, how many different ones, and second looks:
  stances integer not null default 0, second_looks integer not null default 0 -- written with each decision, for speed
);
create table if not exists annotators (name text primary key, token text unique); -- hash of the token; null: cannot sign in
create table if not exists decisions (
  id text primary key, key text not null, annotator text not null, content text not null, version integer not null,
  look integer not null, verdict text not null, question text not null, answer text not null, aliases text not null,
  reason text not null, note text not null, stance text not null, seconds real not null, at text not null,
  unique (key, annotator, version)
);
create table if not exists drafts (
  key text, annotator text, content text not null, edited integer not null, body text not null, primary key (key, annotator)
);
-- Who has a candidate on the screen, in the order in which they got it.
create table if not exists claims (
  number integer primary key, key text not null, annotator text not null, at real not null, unique (key, annotator)
);
create index if not exists claims_annotator on claims (annotator);

-- The newest decision of each annotator about each candidate as it is now.
create view if not exists current as
  select d.* from decisions d join items i on i.key = d.key and i.content = d.content
  where d.verdict <> 'withdrawn'
    and d.version = (select max(version) from decisions e where e.key = d.key and e.annotator = d.annotator);
