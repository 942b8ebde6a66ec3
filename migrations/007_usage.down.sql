alter table jobs drop column usage;
