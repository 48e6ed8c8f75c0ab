"""What the training process and the delivery process share: records, their files, owners, and what is pending."""
