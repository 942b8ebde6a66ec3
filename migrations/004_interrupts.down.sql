drop table answers;
alter table jobs drop column answer_count, drop column interrupts;
